import importlib.metadata
import json
import logging
import multiprocessing
import re

import pytest
from conftest import composed

from asr import runs
from asr.errors import ConfigError
from asr.runs import Run


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "out" / "r", composed(), command=["python", "launch.py"], overrides=["seed=0"])


def test_a_new_run_says_what_where_and_with_which_code(run):
    record = json.loads((run.path / "run.json").read_text())
    assert set(record) >= set(
        "schema experiment version config_sha256 status exit_code started finished command overrides git packages topology".split()
    )
    assert (record["status"], record["exit_code"], record["finished"]) == ("running", None, None)
    assert record["topology"]["device"] == "cpu"
    assert record["packages"]["transformers"] == importlib.metadata.version("transformers")
    assert re.fullmatch(r"[0-9a-f]{64}", record["config_sha256"])
    assert Run.load(run.path).config == composed()


def test_the_hash_is_of_the_values_not_of_their_order(run):
    again = dict(reversed(composed().items()))
    assert runs.config_sha256(again) == run.record["config_sha256"] != runs.config_sha256(composed("seed=1"))


@pytest.mark.parametrize(("code", "status"), [(0, "finished"), (1, "failed"), (130, "failed")])
def test_the_end_is_recorded(run, code, status):
    run.finish(code, "why" if code else None)
    record = Run.load(run.path).record
    assert (record["status"], record["exit_code"]) == (status, code)
    assert record["finished"] >= record["started"]
    assert record.get("error") == ("why" if code else None)


def test_a_directory_holds_one_run(run):
    with pytest.raises(ConfigError, match=r"^hydra\.run\.dir: .* already holds a run"):
        Run.create(run.path, composed(), command=[], overrides=[])
    with pytest.raises(ConfigError, match="already holds a run"):
        runs.check_can_hold_run(run.path)


def _claim(path):
    try:
        Run.create(path, composed(), command=[], overrides=[])
    except ConfigError:
        return 0
    return 1


@pytest.mark.slow
def test_of_several_that_start_at_once_one_gets_the_directory(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert sum(pool.map(_claim, [tmp_path / "same"] * 4)) == 1


def test_checking_a_place_leaves_nothing_there(tmp_path):
    runs.check_can_hold_run(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    runs.check_can_hold_run(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^hydra\.run\.dir: .*file/x can't be written"):
        runs.check_can_hold_run(tmp_path / "file" / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_values_that_json_lacks_become_null_with_a_warning(run, caplog):
    run.write_metrics({"eval_loss": float("inf"), "eval_wer": 0.5})
    assert json.loads((run.path / "metrics.json").read_text()) == {"eval_loss": None, "eval_wer": 0.5}
    assert "eval_loss=inf" in caplog.text


def test_predictions_keep_every_script(run):
    line = {"id": "ü/1", "reference": "你好", "hypothesis": "", "seconds": 1.0, "errors": 1}
    run.write_predictions([line])
    assert [json.loads(x) for x in (run.path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()] == [line]


def test_a_folder_with_anything_in_it_is_refused_for_a_late_mistake_would_discard_it(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .*precious is not empty"):
        runs.check_can_hold_run(tmp_path / "precious", key="hydra.sweep.dir")


def test_discarding_removes_the_run_and_the_experiment_s_empty_folder_only(tmp_path):
    folder = tmp_path / "spoken_digits_ctc"
    Run.create(folder / "r", composed(), command=[], overrides=[]).discard()
    assert list(tmp_path.iterdir()) == []
    kept = Run.create(folder / "kept", composed(), command=[], overrides=[])
    Run.create(folder / "r", composed(), command=[], overrides=[]).discard()
    assert list(folder.iterdir()) == [kept.path]
    Run.create(tmp_path / "mine" / "r", composed(), command=[], overrides=[]).discard()
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run directory"):
        Run.load(tmp_path)


def test_logging_reaches_the_file(run):
    runs.configure_logging(run.path)
    logging.getLogger("asr.test").info("hello %s", "there")
    logging.getLogger("someone").warning("careful")
    logging.getLogger("someone").info("chatter")
    text = (run.path / "run.log").read_text()
    assert "INFO asr.test: hello there" in text
    assert "careful" in text
    assert "chatter" not in text
