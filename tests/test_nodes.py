"""Servers of one run: waiting for the first, hearing each other, the end of one that falls silent."""

import json
import re
import signal
import threading
import time

import pytest
from test_supervision import left_behind, story_launch

from asr import nodes, supervision
from asr.errors import ConfigError, LaunchError
from asr.ranks import ask_to_stop
from asr.topology import Topology


def topology(**changes) -> Topology:
    return Topology(**{"num_nodes": 2, "master_addr": "127.0.0.1", "node_timeout_seconds": 2, "stop_seconds": 1, **changes})


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    return tmp_path


def beating(run_dir, monkeypatch, node):
    monkeypatch.setattr(nodes, "BEAT_SECONDS", 0.0)
    return nodes.Nodes(run_dir, topology(), node)


def test_a_server_waits_until_the_first_has_begun(tmp_path):
    (tmp_path / "run.json").touch()  # claimed, not yet written
    timer = threading.Timer(0.3, lambda: (tmp_path / "run.json").write_text('{"status": "running"}'))
    timer.start()
    nodes.wait_for_run(tmp_path, topology())
    assert not timer.is_alive()


def test_a_run_that_never_begins(tmp_path):
    with pytest.raises(LaunchError, match=r"begun no run in .* within 0 s \(topology.join_seconds\)"):
        nodes.wait_for_run(tmp_path, topology(join_seconds=0.1))


def test_a_folder_with_a_finished_run_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    with pytest.raises(ConfigError, match="already holds a run, which has finished"):
        nodes.wait_for_run(tmp_path, topology())


def test_servers_that_beat_are_there(run_dir, monkeypatch):
    first, second = (beating(run_dir, monkeypatch, node) for node in (0, 1))
    assert [n.lost() for n in (first, second, first, second)] == [None] * 4
    second.leave(0)
    assert first.lost() is None


def test_a_server_that_falls_silent_is_lost(run_dir, monkeypatch):
    first, second = (beating(run_dir, monkeypatch, node) for node in (0, 1))
    first.lost()
    second.lost()
    assert first.lost() is None
    first.timeout_seconds = 0.1
    time.sleep(0.2)
    assert "server 1 (" in first.lost()
    assert "has given no sign for 0 s" in first.lost()


def test_a_server_that_ends_badly_is_lost_at_once(run_dir, monkeypatch):
    first, second = (beating(run_dir, monkeypatch, node) for node in (0, 1))
    second.leave(-9)
    assert first.lost().endswith("ended with exit code 137")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"status": "failed", "error": "bad data"}, "server 0 has failed: bad data"),
        ({"status": "finished"}, None),
        ({"status": "running"}, None),
    ],
)
def test_the_first_server_s_end_while_it_prepares(run_dir, monkeypatch, record, said):
    (run_dir / "run.json").write_text(json.dumps(record))
    assert beating(run_dir, monkeypatch, 1).lost() == said


def test_a_run_that_the_first_server_has_removed(run_dir, monkeypatch):
    (run_dir / "run.json").unlink()
    assert "its configuration is wrong" in beating(run_dir, monkeypatch, 1).lost()


def test_the_first_server_gathers_the_others_logs(run_dir, monkeypatch):
    first = beating(run_dir, monkeypatch, 0)
    log = run_dir / "ranks" / "node-1.log"
    log.write_text("[rank 1] one\n[rank 1] tw")
    first.gather()
    log.write_text("[rank 1] one\n[rank 1] two\n")
    first.leave(0)
    assert (run_dir / "run.log").read_text() == "[rank 1] one\n[rank 1] two\n"


def test_a_lost_server_ends_the_ranks_here(run_dir, monkeypatch, capfd):
    monkeypatch.setattr(nodes, "BEAT_SECONDS", 0.2)
    where = topology(world_size=2, node_rank=0)
    alone = Topology(world_size=1)
    launch = story_launch(alone, run_dir, "all_wait", "0")
    other = nodes.Nodes(run_dir, where, 1)
    other.lost()
    other.leave(1)
    end = supervision.supervise(launch, run_dir, where, node=0)
    assert end.exit_code == 1
    assert "server 1 (" in end.error
    assert left_behind(run_dir) == []


@pytest.mark.parametrize(
    ("number", "story", "code", "said"),
    [
        (signal.SIGINT, "all_wait", 130, "stopped on host0"),
        (signal.SIGTERM, "trains", 75, r"preempted \(SIGTERM\) after step \d+, which is saved;"),
    ],
)
def test_a_stop_on_one_server_ends_the_others(run_dir, number, story, code, said):
    where = topology(world_size=2, node_rank=1)
    ask_to_stop(run_dir, number, "stopped on host0", seconds=10)
    end = supervision.supervise(story_launch(Topology(), run_dir, story, "0"), run_dir, where, node=1)
    assert end.exit_code == code
    assert re.match(said, end.error)
