from dataclasses import dataclass
from typing import Any

import pytest
from conftest import composed

from asr import config
from asr.errors import ConfigError


@dataclass(kw_only=True)
class Node:
    share: float = config.bounded(0.5, at_least=0, below=1)
    kind: str = config.choice("a", "a", "bee")
    needed: int


@pytest.mark.parametrize(
    ("value", "limits", "problem"),
    [
        (1, {"at_least": 1}, ""),
        (0, {"at_least": 1}, "0 is out of range; it must be at least 1."),
        (0, {"above": 0, "at_most": 1}, "0 is out of range; it must be above 0 and at most 1."),
        (None, {"at_least": 1}, ""),
        ("b", {"values": ("a", "bee")}, "'b' is not one of a, bee."),
        (True, {}, ""),
    ],
)
def test_out_of_range(value, limits, problem):
    assert config.out_of_range(value, limits) == problem


def test_a_range_names_its_field():
    with pytest.raises(ConfigError, match=r"^share: 1 is out of range"):
        config.check_ranges(Node(share=1, needed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": []}, r"^stages: is empty"),
        ({"stages": ["trian"]}, r"^stages: 'trian'.*Did you mean train"),
        ({"seed": -1}, r"^seed: -1 is out of range"),
        ({"experiment_name": "a/b"}, r"^experiment_name: 'a/b' can't name a folder"),
        ({"text": {"_target_": "asr.text.TextRules", "cse": "lower"}}, r"^text\.cse: TextRules has no such key. Did you mean case"),
        ({"text": {"_target_": "asr.text.NoSuch"}}, r"^text\._target_: 'asr.text.NoSuch' can't be imported"),
        ({"text": {"_target_": "os.system"}}, r"^text\._target_: 'os.system' is not a dataclass"),
        ({"text": None}, r"^text: has no _target_"),
        ({"model": {"_target_": "test_config.Node", "needed": None}}, r"^model\.needed: is missing"),
        ({"topology": {"_target_": "asr.topology.Topology", "world_size": 0}}, r"^topology\.world_size: 0 is out of range"),
        ({"zork": 1}, r"^zork: there is no such key"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config.instantiate(composed() | change)


def test_a_run_of_before_rehearsals_still_loads():
    asked = composed()
    assert config.instantiate({**asked, "rehearse": True})["rehearse"] is True
    asked.pop("rehearse")
    assert config.instantiate(asked)["rehearse"] is False


def test_a_team_s_own_class_is_built():
    built = config.instantiate(composed() | {"model": {"_target_": "test_config.Node", "needed": 3}})
    assert built["model"] == Node(needed=3)


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("ASR_CACHE", str(tmp_path))
    assert config.cache_root(None, "x") == tmp_path / "x"
    assert config.cache_root("~/y", "x").name == "y"
    monkeypatch.delenv("ASR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config.cache_root(None, "x") == tmp_path / "asr" / "x"


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [1, 10**15], [1.0, True, "1", None]),
        (float, [1, 0.5], [True, "1"]),
        (bool, [False], [0, "no"]),
        (str | None, ["", None], [1, []]),
        (list[float], [[], [1, 0.5]], [["a"], "ab", {"a": 1}]),
        (dict[str, Any], [{}, {"a": [1]}], [[], None]),
        (Any, [None, 1, object()], []),
    ],
)
def test_a_plain_value_fits_its_annotation(hint, right, wrong):
    assert [value for value in right if not config.fits(hint, value)] == []
    assert [value for value in wrong if config.fits(hint, value)] == []


def test_what_a_run_can_t_write_down_is_refused():
    for value in (b"bytes", "a\0", "\ud800", 2**63, object()):
        with pytest.raises(ConfigError, match=r"^a\.b\.1: "):
            config.check_plain({"a": {"b": [0, value]}})
    config.check_plain({"a": {"b": [0, -1.5, None, True, "é", float("nan")]}})


def test_a_huge_number_is_out_of_range_and_no_crash():
    assert "out of range" in config.out_of_range(10**400, {"at_most": 1})
