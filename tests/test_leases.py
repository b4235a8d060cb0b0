"""Devices that are one run's at a time: between processes, whatever ends them. No device is needed: a lease is a lock on a file."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_supervision import until

from asr import leases
from asr.errors import ConfigError, LaunchError
from asr.topology import Topology

HOLDS = """
import os, sys, time
from pathlib import Path
from asr import leases
from asr.topology import Topology
number, seconds, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
with leases.leased(Topology(device="hpu", ranks_per_node=number), Path(name)) as lease:
    begin = time.monotonic()
    if "forks" in sys.argv and not os.fork():
        time.sleep(0.7)
        os._exit(0)
    print("has", *lease.ids, flush=True)
    sys.stdin.read() if seconds < 0 else time.sleep(seconds)
    print(name, ",".join(lease.ids), begin, time.monotonic(), flush=True)
"""


@pytest.fixture(autouse=True)
def server(monkeypatch, tmp_path):
    """A server of three HPUs whose leases are this test's."""
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,1,2")
    monkeypatch.setenv(leases.FOLDER, str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)


def hpu(number: int = 1, **options) -> Topology:
    return Topology(device="hpu", ranks_per_node=number, **options)


@pytest.fixture
def holding():
    """Return a function that starts a process which holds devices until its input ends, and waits until it has them."""
    started = []

    def start(number: int = 1, name: str = "a run", *words: str, visible: str = "0,1,2", waits: bool = True) -> subprocess.Popen:
        environment = {**os.environ, "HABANA_VISIBLE_MODULES": visible}
        command = [sys.executable, "-c", HOLDS, str(number), "-1", name, *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert not waits or process.stdout.readline().startswith("has")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def free() -> list[str]:
    return [name for name in ("0", "1", "2") if not leases._holder(leases._path("hpu", name))]


def test_a_run_gets_a_device_of_its_own_and_gives_it_back():
    with leases.leased(hpu(), Path("a")) as first, leases.leased(hpu(2), Path("b")) as second:
        assert (first.ids, second.ids) == (("0",), ("1", "2"))
        assert second.environment["HABANA_VISIBLE_MODULES"] == "1,2"
        assert second.describe() == {"device": "hpu", "ids": ["1", "2"], "waited_seconds": 0.0}
        assert free() == []
    assert free() == ["0", "1", "2"]


def test_the_shell_s_choice_and_the_topology_s_are_the_pool(monkeypatch):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "2,1,2")
    with leases.leased(hpu(), Path("a")) as lease:
        assert lease.ids == ("2",)
    with pytest.raises(ConfigError, match="3 processes, but there are 2 devices"), leases.leased(hpu(3), Path("a")):
        pass
    monkeypatch.delenv("HABANA_VISIBLE_MODULES")
    with leases.leased(hpu(environment={"HABANA_VISIBLE_MODULES": "5,7"}), Path("a")) as lease:
        assert lease.ids == ("5",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a/1,3,-1,4")
    with leases.leased(Topology(device="cuda", ranks_per_node=2), Path("a")) as lease:
        assert (lease.ids, lease.environment["CUDA_VISIBLE_DEVICES"]) == (("GPU-a/1", "3"), "GPU-a/1,3")


@pytest.mark.parametrize(
    "topology",
    [Topology(), hpu(lease_devices=False), hpu(num_nodes=2, node_rank=0, master_addr="localhost")],
    ids=["a CPU's", "shared", "of several servers"],
)
def test_no_lease(topology, tmp_path):
    with leases.leased(topology, Path("a")) as lease:
        assert (lease.ids, lease.environment) == ((), None)
    assert list(tmp_path.iterdir()) == []


def test_where_devices_can_t_be_told_none_is_leased(monkeypatch):
    monkeypatch.delenv("HABANA_VISIBLE_MODULES")
    monkeypatch.setattr("asr.topology.Path", lambda *_: Path("/nonexistent"))
    with leases.leased(hpu(), Path("a")) as lease:
        assert lease.ids == ()


def test_more_runs_than_devices_wait_in_the_log_and_never_meet(holding, caplog, monkeypatch):
    processes = [holding(1, f"run {number}") for number in range(3)]
    ends = []

    def one_ends(_seconds: float) -> None:
        assert [record for record in caplog.records if "waiting" in record.message]
        ends.append(processes[len(ends)].communicate()[0].split()[-3])

    monkeypatch.setattr(leases.time, "sleep", one_ends)
    with leases.leased(hpu(2), Path("mine")) as lease:
        assert len(ends) == 2
        assert sorted(lease.ids) == sorted(ends)
    (said,) = [record.message for record in caplog.records if "waiting" in record.message]
    assert re.fullmatch(r"waiting for 2 of hpu 0,1,2, 0 free \(0: process \d+, run \d; 1: process .*; 2: process .*\)", said)


def test_many_runs_at_once_never_share_a_device():
    wanted = [1, 2, 1, 3, 1, 2]
    command = [sys.executable, "-c", HOLDS]
    started = [
        subprocess.Popen([*command, str(number), "0.05", f"run{i}"], stdout=subprocess.PIPE, text=True) for i, number in enumerate(wanted)
    ]
    held = []
    for process, number in zip(started, wanted, strict=True):
        line = process.communicate(timeout=60)[0].splitlines()[1].split()
        ids = line[1].split(",")
        assert len(ids) == number
        held += [(device, float(line[2]), float(line[3])) for device in ids]
    for device, begin, end in held:
        meets = Counter(other for other, b, e in held if other == device and b < end and begin < e)
        assert meets[device] == 1, (device, held)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_frees_its_device(holding, number):
    process = holding(3)
    assert free() == []
    process.send_signal(number)
    process.wait()
    assert free() == ["0", "1", "2"]


def test_what_it_forked_keeps_it(holding):
    process = holding(1, "a run", "forks")
    process.kill()
    process.wait()
    assert free() == ["1", "2"]
    until(lambda: free() == ["0", "1", "2"], seconds=5)


def test_a_run_that_stops_waiting_takes_nothing(holding, monkeypatch):
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    holding(1)
    with leases.leased(hpu(), Path("b")):
        monkeypatch.setattr(leases.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt), leases.leased(hpu(2), Path("c")):
            pass
        assert free() == ["2"]


def test_one_that_wants_all_is_not_passed_by(holding):
    """Among runs of the same devices; those of other devices don't wait behind them."""
    first = holding(1, "first")
    whole = holding(3, "whole", waits=False)
    (queue,) = leases.folder().glob("hpu-queue-*")
    until(lambda: is_locked(queue), seconds=20)
    other = holding(1, "other", visible="2,1")  # passes by
    late = holding(1, "late", waits=False)
    for process in (other, first, whole):
        process.stdin.close()
    ended = float(whole.stdout.read().split()[-1])
    late.stdin.close()
    assert float(late.stdout.read().split()[-2]) >= ended


def is_locked(path: Path) -> bool:
    file = os.open(path, os.O_RDWR)
    try:
        return not leases._locks(file, leases.fcntl.LOCK_SH)
    finally:
        os.close(file)


# --- ranks ---------------------------------------------------------------------------------------------------------------


def test_ranks_hold_the_lease_too():
    joins = "import time; from asr import leases; leases.join(); print('has', flush=True); time.sleep(60)"
    with leases.leased(hpu(), Path("a")) as lease:
        rank = subprocess.Popen([sys.executable, "-c", joins], stdout=subprocess.PIPE, text=True, env={**os.environ, **lease.environment})
        assert rank.stdout.readline() == "has\n"
    assert free() == ["1", "2"]
    rank.kill()
    rank.communicate()
    assert free() == ["0", "1", "2"]


def test_a_rank_that_comes_too_late_is_told_so():
    with leases.leased(hpu(), Path("a")) as lease:
        environment = lease.environment
    with leases.leased(hpu(), Path("b")), pytest.raises(LaunchError, match="is another run's meanwhile"):
        leases.join(environment)
    leases.join({})


def test_a_process_that_computes_itself_has_them_for_as_long(monkeypatch):
    monkeypatch.delenv(leases.HELD, raising=False)
    with leases.leased(hpu(2), Path("a")) as lease, leases.applied(lease):
        assert os.environ["HABANA_VISIBLE_MODULES"] == "0,1"
        assert json.loads(os.environ[leases.HELD])["files"]
    assert (os.environ["HABANA_VISIBLE_MODULES"], os.environ.get(leases.HELD)) == ("0,1,2", None)
    with leases.applied(leases.Lease()):
        assert os.environ["HABANA_VISIBLE_MODULES"] == "0,1,2"


# --- where --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.delenv(leases.FOLDER)
    monkeypatch.setattr(leases, "HOMES", (tmp_path / "not there", tmp_path))
    return tmp_path / f"asr-leases-{os.getuid()}"


def test_the_folder_is_the_user_s_alone(home):
    before = os.umask(0)
    try:
        with leases.leased(hpu(), Path("a")):
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}
    finally:
        os.umask(before)


@pytest.mark.parametrize("made", [lambda home: home.mkdir(mode=0o755), lambda home: home.symlink_to(home.parent), Path.touch])
def test_a_folder_of_others_is_refused(home, made):
    made(home)
    if home.is_dir():
        home.chmod(0o755)
    with (
        pytest.raises(ConfigError, match=r"^topology\.lease_devices: .* (isn't yours alone|can't be made)"),
        leases.leased(hpu(), Path("a")),
    ):
        pass


def test_a_link_in_the_place_of_a_lease_is_not_followed(tmp_path):
    (tmp_path / "hpu-0").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=r"hpu-0 can't be opened"), leases.leased(hpu(), Path("a")):
        pass
    assert not (tmp_path / "precious").exists()


def test_a_slurm_job_has_leases_of_its_own(monkeypatch):
    """Its devices may be numbered from 0 whatever they are."""
    with leases.leased(hpu(), Path("a")) as here:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        with leases.leased(hpu(), Path("b")) as there:
            assert here.ids == there.ids == ("0",)


def test_a_folder_for_several_users_lets_all_of_them_lock(tmp_path):
    before = os.umask(0o077)
    try:
        with leases.leased(hpu(), Path("a")):
            assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666}
    finally:
        os.umask(before)


@pytest.mark.parametrize("job", ["", "17"])
def test_a_folder_that_isn_t_there_is_named(monkeypatch, tmp_path, job):
    monkeypatch.setenv(leases.FOLDER, str(tmp_path / "nowhere"))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    with pytest.raises(ConfigError, match=r"^topology\.lease_devices: .*nowhere.*\(No such file"), leases.leased(hpu(), Path("a")):
        pass
