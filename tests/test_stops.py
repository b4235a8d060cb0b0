"""asr.stops: what a training notes of the signals that reach it, and what ends it, in real processes."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

BEGIN = """
import os, signal, sys, time
from asr import stops
def send(*names):
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.05)
def child(*names):
    if not (pid := os.fork()):
        send(*names)
        os._exit(0)
    os.waitpid(pid, 0)
{listen}()
try:
    with stops.deferred() as asked:
        {body}
        print("ends", asked.number and asked.number.name)
    print("goes on")
except (KeyboardInterrupt, stops.Terminated) as stop:
    print(stops.ended_by(stop))
"""
SAVES = "a checkpoint is saved at the end of this step, then the run ends"
PREEMPTED_BY = "End(exit_code=75, error='preempted ({})')"


def tell(listen: str, body: str) -> tuple[list[str], list[str]]:
    """Return the lines of a process' stdout and stderr that does `body` while a training listens."""
    code = BEGIN.format(listen=f"stops.{listen}", body=body)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize(
    ("listen", "body", "said", "noted"),
    [
        # the first is noted; a training that ends without heeding it doesn't lose it
        ("listen", "pass", ["ends None", "goes on"], []),
        ("listen", "send('SIGUSR1')", ["ends SIGUSR1", PREEMPTED_BY.format("SIGUSR1")], ["SIGUSR1"]),
        ("listen_once", "send('SIGUSR2')", ["ends SIGUSR2", PREEMPTED_BY.format("SIGUSR2")], ["SIGUSR2"]),
        # a second one ends it, but no warning: Slurm preempts with SIGTERM and then warns
        ("listen", "send('SIGTERM', 'SIGUSR2')", ["ends SIGTERM", PREEMPTED_BY.format("SIGTERM")], ["SIGTERM"]),
        ("listen", "send('SIGUSR1', 'SIGTERM')", [PREEMPTED_BY.format("SIGTERM")], ["SIGUSR1"]),
        # a rank may get it from outside and from its guard
        ("listen_once", "send('SIGUSR1', 'SIGTERM')", ["ends SIGUSR1", PREEMPTED_BY.format("SIGUSR1")], ["SIGUSR1"]),
        # what asks for nothing ends it as it is
        ("listen", "send('SIGHUP')", ["End(exit_code=129, error='terminated (SIGHUP)')"], []),
        ("listen_once", "send('SIGTERM', 'SIGHUP')", ["End(exit_code=129, error='terminated (SIGHUP)')"], ["SIGTERM"]),
        ("listen_once", "send('SIGTERM', 'SIGINT')", ["End(exit_code=130, error='interrupted (Ctrl-C)')"], ["SIGTERM"]),
        # what has saved ends in peace
        ("listen", "stops.end_as_preempted('saved')", ["End(exit_code=75, error='saved')"], []),
        # a loader's process takes no warning for its own
        ("listen", "child('SIGUSR1', 'SIGUSR2')", ["ends None", "goes on"], []),
    ],
)
def test_what_a_training_notes(listen, body, said, noted):
    assert tell(listen, body) == (said, [f"{name}: {SAVES}" for name in noted])


def test_what_has_saved_hears_no_more_of_it():
    body = "send('SIGUSR1')\n        try: stops.end_as_preempted('saved')\n        finally: send('SIGTERM', 'SIGUSR1')"
    for listen in ("listen", "listen_once"):
        assert tell(listen, body)[0] == ["End(exit_code=75, error='saved')"]


def test_what_a_shell_has_made_a_rank_ignore_it_hears():
    """nohup ignores SIGHUP, by which guards end a run that has failed; `&` in a script ignores SIGINT."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        assert tell("listen_once", "send('SIGHUP')")[0] == ["End(exit_code=129, error='terminated (SIGHUP)')"]
        assert tell("listen", "send('SIGHUP')")[0] == ["ends None", "goes on"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LOADER = """
import os, signal, subprocess, sys, time
from torch.utils.data import DataLoader
from asr import stops
class Pids:
    def __len__(self): return 100
    def __getitem__(self, i):
        time.sleep(0.02)
        return os.getpid()
stops.listen()
with stops.deferred() as asked:
    loader = DataLoader(Pids(), batch_size=None, num_workers=1, worker_init_fn=stops.listen_in_loader)
    batches = iter(loader)
    worker = next(batches)
    for number in ("TERM", "USR1"):
        subprocess.run(["kill", f"-{number}", str(worker), str(os.getpid())], check=True)
    print(sum(pid == worker for pid in batches), asked.number.name, flush=True)
    batches = iter(loader)
    worker = next(batches)
    os.kill(worker, signal.SIGTERM)
    print(os.waitpid(worker, 0)[1])
    os._exit(0)
"""


@pytest.mark.slow
def test_a_loader_s_process_outlives_what_every_process_gets():
    """Slurm's signals are for its parent, which ends it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOADER], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["99 SIGTERM", "0"], done.stderr
