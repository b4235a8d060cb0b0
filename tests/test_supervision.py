"""The parent and the guards together, under real launchers: every end of a rank, a stop from outside, nothing left behind.

Ranks tell stories of a few words (fakes/rank_story.py) instead of training; tests/e2e/test_several_processes.py trains.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from asr import launchers, supervision
from asr.ranks import RankRecord, ask_to_stop, asked_to_stop, read_records, set_aside
from asr.stops import End
from asr.topology import Topology

STORY = ROOT / "tests" / "fakes" / "rank_story.py"
LAUNCHERS = ["torchrun", "mpirun"]


def story_launch(topology: Topology, run_dir: Path, *words: str, node: int = 0) -> launchers.Launch:
    """Return the real launch with the story in the place of asr.worker."""
    launch = launchers.launch(topology, run_dir, node=node)
    command = list(launch.command)
    at = command.index("asr.worker")
    command[at - 1 : at + 1] = [str(STORY)]
    return launchers.Launch([*command, *words], launch.environment)


@pytest.fixture
def tell(tmp_path):
    """Return a function that runs a story on two ranks: its end, the run directory and the seconds it took."""

    def run(launcher: str, *words: str, **topology):
        folder = tmp_path / 'a run\'s "folder"'
        folder.mkdir()
        where = Topology(world_size=2, launcher=launcher, stop_seconds=2, **topology)
        begin = time.monotonic()
        end = supervision.supervise(story_launch(where, folder, *words), folder, where)
        return end, folder, time.monotonic() - begin

    return run


def left_behind(run_dir: Path) -> list[str]:
    """Return the processes that still have the run directory on their command line."""
    time.sleep(0.2)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(run_dir).encode() in line and process.name != str(os.getpid()):
            found.append(line.decode())
    return found


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "mpirun"])
def test_ranks_that_finish_end_the_run_well(tell, launcher, capfd):
    end, folder, _ = tell(launcher, "finishes")
    assert end == End(0)
    assert {n: r.exit_code for n, r in read_records(folder).items()} == {0: 0, 1: 0}
    assert capfd.readouterr().err == "hello from 0 of 2\n"  # the first rank's, without its name
    lines = (folder / "run.log").read_text().splitlines()
    assert {"[rank 0] hello from 0 of 2", "[rank 1] hello from 1 of 2"} <= set(lines)


def test_all_ranks_are_shown_on_request(tell, capfd):
    tell("mpirun", "finishes", shown_ranks="all")
    assert set(capfd.readouterr().err.splitlines()) == {"[rank 0] hello from 0 of 2", "[rank 1] hello from 1 of 2"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_s_own_exit_code_is_the_run_s(tell, launcher):
    """torchrun would make 1 of it."""
    end, folder, seconds = tell(launcher, "says_3")
    assert end == End(3, "bad data")
    assert seconds < 15
    assert left_behind(folder) == []
    other = read_records(folder)[0]
    assert (other.exit_code, other.error) in ((129, "terminated (SIGHUP)"), (75, "preempted (SIGTERM)"))  # torchrun and mpirun are fast


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "mpirun"])
def test_a_rank_that_ends_as_preempted_ends_the_run_so(tell, launcher):
    """As for a time limit: nobody has asked for it."""
    end, folder, seconds = tell(launcher, "trains_for_an_hour")
    records = read_records(folder)
    assert [records[n].exit_code for n in (0, 1)] == [75, 75]
    assert end == End(75, records[0].error)
    saved = [path.name for path in (folder / "checkpoints").iterdir()]
    assert saved == [f"checkpoint-{re.search(r'trainer.max_hours=1. after step (.*), which is saved', end.error)[1]}"]
    assert seconds < 15
    assert left_behind(folder) == []


def test_ranks_end_with_the_one_that_ended_as_preempted_alone(tell):
    end, folder, _ = tell("mpirun", "says_75")
    assert end == End(75, "preempted")
    assert read_records(folder)[0].exit_code == 75


def test_a_killed_rank_is_named_with_its_last_lines(tell):
    end, folder, seconds = tell("torchrun", "kills_itself")
    assert end.exit_code == 128 + signal.SIGKILL
    assert "rank 1 was killed by SIGKILL (by the system, if it ran out of memory): process " in end.error
    assert "a word before the end" in end.error
    assert seconds < 15
    assert left_behind(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_deaf_rank_and_its_loader_worker_are_killed(tell, launcher):
    end, folder, seconds = tell(launcher, "is_deaf")
    assert end == End(3, "bad data")  # a user's mistake, without more words
    killed = None if launcher == "mpirun" else 128 + signal.SIGKILL  # mpirun kills guards too, before they write
    assert read_records(folder)[0].exit_code == killed
    assert seconds < 15
    assert left_behind(folder) == []
    assert not subprocess.run(["pgrep", "-f", "import time; time.sleep(60)"], capture_output=True, check=False).stdout


def test_a_long_message_ends_the_run_too(tell):
    """It goes through a pipe that holds 64 KiB."""
    end, _, _ = tell("mpirun", "complains_at_length")
    assert end.exit_code == 1
    assert end.error.startswith("rank 1 ended with exit code 1: word word ")


def test_an_exit_code_without_our_message_is_not_taken_for_ours(tell):
    """2 would remove the run, whose configuration is said to be wrong."""
    end, _, _ = tell("mpirun", "exits_with_2")
    assert end == End(1, "rank 1 ended with exit code 2: it left no message. ")


def test_a_daemon_of_a_rank_ends_with_it(tell):
    end, folder, seconds = tell("mpirun", "starts_a_daemon")
    assert end == End(0)
    assert seconds < 15
    assert left_behind(folder) == []


def test_a_progress_bar_moves_on_the_terminal_and_ends_in_the_log(tell, capfd):
    _, folder, _ = tell("mpirun", "shows_a_bar")
    assert capfd.readouterr().err == "\r1/3\r2/3\r3/3\ndone 0\n"
    assert [line for line in (folder / "run.log").read_text().splitlines() if "rank 0" in line][-2:] == ["[rank 0] 3/3", "[rank 0] done 0"]


def test_a_launcher_that_starts_no_rank_says_why(tmp_path):
    topology = Topology(world_size=2, stop_seconds=1)
    launch = launchers.Launch([sys.executable, "-c", "print('no such option'); raise SystemExit(9)"], {})
    end = supervision.supervise(launch, tmp_path, topology)
    assert end.exit_code == 1
    assert "2 of 2 ranks never started" in end.error
    assert "exit code 9" in end.error
    assert "no such option" in end.error


# --- stops from outside ----------------------------------------------------------------------------------------------


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_supervision import story_launch
from asr import stops, supervision
from asr.topology import Topology
topology = Topology(world_size=2, launcher=sys.argv[2], stop_seconds=2, preempt_seconds=60)
stops.listen()
try:
    print(supervision.supervise(story_launch(topology, Path(sys.argv[1]), sys.argv[3]), Path(sys.argv[1]), topology))
except (KeyboardInterrupt, stops.Terminated) as stop:
    print(stops.ended_by(stop))
    sys.exit(stops.ended_by(stop).exit_code)
"""


@pytest.fixture
def parent(tmp_path):
    """Return a function that starts a parent of two waiting ranks, and waits until both wait."""
    started = []

    def start(launcher: str, story: str = "all_wait") -> tuple[subprocess.Popen, Path]:
        code = PARENT.format(tests=str(ROOT / "tests"))
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), launcher, story], env=environment)
        started.append(process)
        until(lambda: (tmp_path / "run.log").exists() and (tmp_path / "run.log").read_text().count("waiting") == 2)
        return process, tmp_path

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(happened, seconds=30.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize(("launcher", "number", "code"), [("torchrun", signal.SIGINT, 130), ("mpirun", signal.SIGTERM, 75)])
def test_a_stop_reaches_every_rank(parent, launcher, number, code):
    process, folder = parent(launcher)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    records = read_records(folder)
    assert [records[n].exit_code for n in (0, 1)] == [code, code]
    assert [records[n].stopped_by for n in (0, 1)] == ["run", "run"]
    assert left_behind(folder) == []
    assert json.loads((folder / "ranks" / "stop.json").read_text())["reason"].startswith(f"stopped by {number.name} on ")


def descendants(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(c) for c in children] + [d for c in children for d in descendants(int(c))]


def test_a_stop_that_every_process_gets(parent, capfd):
    """From Slurm or a container: ranks get it twice, from outside and from their guards."""
    process, folder = parent("mpirun")
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):  # one that has ended at its parent's word
            os.kill(pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert [record.exit_code for record in read_records(folder).values()] == [75, 75]
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_ctrl_c_kills_at_once(parent):
    process, folder = parent("torchrun", "all_deaf")
    process.send_signal(signal.SIGINT)
    until((folder / "ranks" / "stop.json").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert left_behind(folder) == []


@pytest.mark.slow
def test_a_guard_that_doesn_t_move_is_killed_with_its_rank(parent):
    process, folder = parent("torchrun")
    os.kill(read_records(folder)[1].guard, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert left_behind(folder) == []


def test_a_guard_that_is_killed_ends_the_run(parent, capfd):
    process, folder = parent("mpirun")
    os.kill(read_records(folder)[1].guard, signal.SIGKILL)
    assert process.wait(timeout=20) == 0
    assert "End(exit_code=1, error='rank 1: the process that watched it is gone, " in capfd.readouterr().out
    assert left_behind(folder) == []


def test_a_stop_of_a_run_whose_folder_is_gone(parent):
    process, folder = parent("mpirun")
    shutil.rmtree(folder)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert left_behind(folder) == []


def test_a_record_that_can_t_be_read_now_counts_for_none(tmp_path):
    (tmp_path / "ranks").mkdir()
    RankRecord(0).write(tmp_path)
    (tmp_path / "ranks" / "1.json").touch()
    (tmp_path / "ranks" / "stop.json").write_text('{"signal": 1')
    assert list(read_records(tmp_path)) == [0]
    assert asked_to_stop(tmp_path) is None


@pytest.mark.parametrize("launcher", ["mpirun", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_killed_parent_leaves_no_rank_behind(parent, launcher):
    process, folder = parent(launcher)
    process.kill()
    process.wait()
    until(lambda: left_behind(folder) == [], seconds=20)


# --- preemption ------------------------------------------------------------------------------------------------------


def saved_by_all(folder: Path) -> str:
    """Return the one message of all ranks, which have saved one checkpoint."""
    records = read_records(folder)
    assert [records[n].exit_code for n in (0, 1)] == [75, 75]
    steps = {re.search(r"after step (\d+), which is saved", record.error)[1] for record in records.values()}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"checkpoint-{step}" for step in steps]
    assert left_behind(folder) == []
    return records[0].error


@pytest.mark.parametrize(
    ("launcher", "number"), [pytest.param("torchrun", signal.SIGUSR1, marks=pytest.mark.slow), ("mpirun", signal.SIGTERM)]
)
def test_all_ranks_save_the_same_step(parent, capfd, launcher, number):
    process, folder = parent(launcher, "trains")
    process.send_signal(number)
    assert process.wait(timeout=20) == 75
    message = saved_by_all(folder)
    assert message.startswith(f"preempted ({number.name}) after step ")
    assert message.endswith(f"resume=auto goes on from there, or `asr resume {folder}`")
    assert f"End(exit_code=75, error='{message}')" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("launcher", "numbers"),
    [
        pytest.param("torchrun", [signal.SIGUSR1], marks=pytest.mark.slow),
        ("mpirun", [signal.SIGUSR2]),
        pytest.param("torchrun", [signal.SIGTERM, signal.SIGUSR2], marks=pytest.mark.slow),  # as Slurm preempts
    ],
)
def test_slurm_s_signal_to_every_process_saves_too(parent, launcher, numbers):
    """SIGUSR1 would kill torchrun and leave its ranks behind. SIGTERM it takes for its own end, and leaves its ranks 30 s."""
    process, folder = parent(launcher, "trains")
    everybody = [process.pid, *descendants(process.pid)]
    for number in numbers:
        for pid in everybody:
            os.kill(pid, number)
        time.sleep(0.1)
    assert process.wait(timeout=20) == 75
    saved_by_all(folder)


@pytest.mark.parametrize(("launcher", "whom"), [("mpirun", "guard"), pytest.param("torchrun", "pid", marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_alone_saves_on_all(parent, capfd, launcher, whom):
    """As from `scancel --signal` or by hand; the parent, which has heard nothing, ends the run as preempted."""
    process, folder = parent(launcher, "trains")
    os.kill(getattr(read_records(folder)[1], whom), signal.SIGUSR2)
    assert process.wait(timeout=20) == 0  # the end that supervise returns
    message = saved_by_all(folder)
    assert f"End(exit_code=75, error='{message}')" in capfd.readouterr().out
    assert "SIGUSR2" in message


@pytest.mark.slow
def test_ranks_that_can_t_save_are_killed_once_one_has_ended(parent, capfd):
    """Rank 1 ends without the others, which hang: they don't have all of preempt_seconds any more."""
    process, folder = parent("torchrun", "saves_never")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert left_behind(folder) == []


@pytest.mark.slow
def test_ranks_that_don_t_train_yet_have_nothing_to_save(parent):
    """They hang in a library that waits for other ranks, and hear nothing."""
    process, folder = parent("mpirun", "all_deaf")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=8) == 75  # stop_seconds, not the 60 of preempt_seconds
    assert left_behind(folder) == []


def test_a_launcher_that_has_started_no_rank_has_nothing_to_save(tmp_path, monkeypatch):
    """As torchrun's, which waits for other servers first."""
    monkeypatch.setattr(supervision, "GUARD_SECONDS", 0.5)
    (tmp_path / "ranks").mkdir()
    ask_to_stop(tmp_path, signal.SIGTERM, "stopped by SIGTERM on gaudi1", seconds=60)
    launch = launchers.Launch([sys.executable, "-c", "import time; time.sleep(60)"], {})
    begin = time.monotonic()
    end = supervision.supervise(launch, tmp_path, Topology(stop_seconds=0.5, preempt_seconds=60))
    assert (end.exit_code, end.error) == (75, "stopped by SIGTERM on gaudi1")
    assert time.monotonic() - begin < 20


def test_a_second_sigterm_kills_ranks_that_save(parent):
    process, folder = parent("mpirun", "all_hang_in_a_step")
    process.send_signal(signal.SIGTERM)
    until((folder / "ranks" / "stop.json").exists)
    process.send_signal(signal.SIGUSR1)  # changes nothing
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=3) == 75
    assert left_behind(folder) == []


def test_a_session_begins_without_the_stop_of_the_last_one(tmp_path):
    for session in (1, 2):
        (tmp_path / "ranks").mkdir()
        ask_to_stop(tmp_path, signal.SIGTERM, f"stop {session}", seconds=1)
        set_aside(tmp_path)
        assert asked_to_stop(tmp_path) is None
        assert json.loads((tmp_path / "ranks.before" / "stop.json").read_text())["reason"] == f"stop {session}"
    set_aside(tmp_path)
