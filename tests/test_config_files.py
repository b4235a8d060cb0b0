"""YAML files that are wrong, or larger than they look."""

import sys

import pytest

from asr import command_line, composition, config_files
from asr.errors import ConfigError


def bomb(first: str, line: str) -> str:
    return first + "".join(line.format(this=i, that=", ".join([f"*b{i - 1}"] * 9)) for i in range(1, 12))


BAD_FILES = {
    "lists of lists": (bomb("b0: &b0 [a]\n", "b{this}: &b{this} [{that}]\n"), r"spoilt\.yaml:\d+: holds more than 100000 values"),
    "merges of merges": (bomb("b0: &b0 {a: 1}\n", "b{this}: &b{this} {{<<: [{that}]}}\n"), r":\d+: holds more than 100000 values"),
    "what holds itself": ("a: &a [*a]\n", r":1: \*a stands for what holds it"),
    "a deep list": ("a: " + "[" * 2000 + "]" * 2000, r":1: is nested more than 100 deep"),
    "an open bracket": ("a: [1\n", r":\d+ is not YAML"),
    "another encoding": ("é: 1\n".encode("utf-16"), r"is not UTF-8"),
    "a list": ("- a\n", r"spoilt\.yaml"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_wrong_or_grows_when_it_is_read_is_named(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / "topology" / "spoilt.yaml"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = command_line.read_command_line(["--config-dir", str(tmp_path), "topology=spoilt"])
    with pytest.raises(ConfigError, match=message):
        composition.compose(asked.jobs[0])


def test_a_defaults_list_that_leads_back_to_itself_is_refused_soon(tmp_path):
    (tmp_path / "topology").mkdir()
    (tmp_path / "topology" / "circle.yaml").write_text("defaults:\n  - circle\n")
    asked = command_line.read_command_line(["--config-dir", str(tmp_path), "topology=circle"])
    limit = sys.getrecursionlimit()
    with pytest.raises(ConfigError, match=r"leads back to itself"):
        composition.compose(asked.jobs[0])
    assert sys.getrecursionlimit() == limit


def test_anchors_that_stand_for_little_are_followed(tmp_path):
    (tmp_path / "ok.yaml").write_text("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    config_files.check_yaml(tmp_path / "ok.yaml")
