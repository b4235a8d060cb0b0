"""Which run a launch goes on with; what needs runs that were stopped is in e2e/stopped.py."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, composed

from asr import ranks, sessions
from asr.errors import ConfigError
from asr.runs import Run


@pytest.fixture
def run(tmp_path):
    made = Run.create(tmp_path / "outputs" / "spoken_digits_ctc" / "r", composed(), command=["a"], overrides=["seed=0"])
    made.finish(1, "a reason")
    return made


def opened(run_dir, *overrides, named=True):
    try:
        return sessions.open_run(composed(*overrides), run_dir, named=named, command=["b"], overrides=list(overrides))
    finally:
        sessions.let_go(run_dir)


def test_a_folder_is_one_launch_s_until_it_ends(tmp_path):
    folder = tmp_path / "a run"
    holds = (
        "import sys, pathlib; from asr.sessions import hold; hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is in use: another launch works there; wait for it"):
            sessions.hold(folder)
        other.kill()
        other.wait()
    sessions.hold(folder)  # a lock goes with its process
    sessions.let_go(folder)
    assert list(folder.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    sessions.hold(tmp_path / "run")
    assert "can't be locked (Function not implemented)" in caplog.text


def test_a_session_keeps_what_was_said_of_the_one_before(run):
    (run.path / "ranks").mkdir()
    ranks.ask_to_stop(run.path, 15, "of the last session", seconds=1)
    _, unfinished = opened(run.path, "resume=auto")
    assert unfinished
    record = json.loads((run.path / "run.json").read_text())
    assert (record["status"], record["exit_code"], record["command"]) == ("running", None, ["b"])
    assert "error" not in record
    (before,) = record["sessions"]
    assert (before["status"], before["exit_code"], before["error"], before["command"]) == ("failed", 1, "a reason", ["a"])
    assert record["config_sha256"] == run.record["config_sha256"]  # `resume` is no part of it
    assert ranks.asked_to_stop(run.path) is None


def test_never_is_never(run):
    with pytest.raises(ConfigError, match="already holds a run"):
        opened(run.path)


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["seed=4"], "seed", "is 4, and 0 in the run to resume"),
        (["trainer.args.learning_rate=1", "seed=4"], "seed", "(1 other keys differ too)"),
    ],
)
def test_another_configuration_is_refused_with_its_key(run, overrides, key, said):
    with pytest.raises(ConfigError) as caught:
        opened(run.path, "resume=auto", *overrides)
    assert caught.value.key == key
    assert said in str(caught.value)


def test_another_topology_goes_on_and_is_said(run):
    opened(run.path, "resume=auto", "topology=cpu2")
    assert "topology.ranks_per_node is 2 now, and was 1" in (run.path / "run.log").read_text()
    assert run.config["topology"]["ranks_per_node"] == 2


def test_one_that_has_finished_is_left_alone(run):
    run.finish(0)
    before = (run.path / "run.json").read_bytes()
    assert opened(run.path, "resume=auto")[1] is False
    assert (run.path / "run.json").read_bytes() == before


@pytest.mark.parametrize("facts", [{"rehearsal": True}, {"status": "dry_run"}])
def test_what_trained_nothing_is_not_resumed(run, facts):
    run.save(**facts)
    with pytest.raises(ConfigError, match="which isn't resumed"):
        opened(run.path, "resume=auto")


def test_without_a_folder_the_newest_unfinished_run_of_this_configuration_is_found(tmp_path):
    home = tmp_path / "outputs" / "spoken_digits_ctc"
    for day, (name, overrides, status) in enumerate(
        (
            ("old", (), "failed"),
            ("sweep/0", (), "preempted"),
            ("other", ("seed=8",), "failed"),
            ("done", (), "finished"),
            ("dry", (), "dry_run"),
        )
    ):
        run = Run.create(home / name, composed(*overrides), command=[], overrides=[])
        run.save(session_started=f"2026-01-0{day + 1}T00:00:00+00:00", status=status)
    (home / "broken").mkdir()
    (home / "broken" / "run.json").write_text("{")
    stamped = home / "2026-11-23_00-00-00"
    stamped.mkdir()  # as Hydra makes it
    found, unfinished = opened(stamped, "resume=auto", named=False)
    assert (found.path, unfinished) == (home / "sweep" / "0", True)
    assert not stamped.exists()
    sessions.let_go(found.path)


def test_where_there_is_none_a_new_run_begins(tmp_path):
    folder = tmp_path / "outputs" / "spoken_digits_ctc" / "new"
    found, unfinished = opened(folder, "resume=auto", named=False)
    assert (found.path, unfinished, found.record["sessions"]) == (folder, True, [])


def test_processes_of_a_session_whose_parent_was_killed_are_waited_for(run, monkeypatch):
    (run.path / "ranks").mkdir()
    monkeypatch.setattr(sessions, "LEAVE_SECONDS", 0.3)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(run.path)]) as leftover:
        ranks.RankRecord(0, pid=leftover.pid, guard=leftover.pid).write(run.path)
        with pytest.raises(ConfigError, match=f"processes {leftover.pid}, {leftover.pid} of its last session still run"):
            opened(run.path, "resume=auto")
        leftover.kill()
        leftover.wait()
    assert opened(run.path, "resume=auto")[1]
