"""A rank whose story is a few words instead of a training: `python rank_story.py <run directory> <story> [<rank>]`.

Under any launcher, with the real guard. The story happens on `rank` (1); others wait for a stop.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from asr.preemption import Preemption
from asr.ranks import Rank, for_launcher, guard, read_records
from asr.stops import End, Terminated, deferred, ended_by, listen_once

EVERY_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def main() -> int:
    run_dir, story, chosen = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1
    rank = Rank.of(os.environ)

    def tell() -> End:
        listen_once()
        try:
            return STORIES[story](rank.number == chosen, rank)
        except (KeyboardInterrupt, Terminated) as stop:
            return ended_by(stop)

    return for_launcher(guard(rank, run_dir, tell, stop_seconds=2, preempt_seconds=6))


def waits() -> End:
    time.sleep(60)
    return End(1, "nobody asked it to stop")


def wait_for_all(rank: Rank) -> None:
    """A launcher kills guards that haven't begun to listen, and they leave no record."""
    while len(read_records(Path(sys.argv[1]))) < rank.world_size:
        time.sleep(0.05)


def finishes(here: bool, rank: Rank) -> End:
    print(f"hello from {rank.number} of {rank.world_size}", flush=True)
    return End()


def says_75(here: bool, rank: Rank) -> End:
    if not here:
        return waits()
    wait_for_all(rank)
    print("a word before the end", flush=True)
    return End(75, "preempted")


def says_3(here: bool, rank: Rank) -> End:
    end = says_75(here, rank)
    return End(3, "bad data") if here else end


def kills_itself(here: bool, rank: Rank) -> End:
    if here:
        print("a word before the end", flush=True)
        wait_for_all(rank)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return waits()


def is_deaf(here: bool, rank: Rank) -> End:
    """Hears no signal, as in a collective of C++, and has a loader worker."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    signal.pthread_sigmask(signal.SIG_BLOCK, EVERY_STOP)
    if here:
        wait_for_all(rank)
        return End(3, "bad data")
    return waits()


def complains_at_length(here: bool, rank: Rank) -> End:
    if here:
        wait_for_all(rank)
    return End(1, "word " * 50_000) if here else waits()


def exits_with_2(here: bool, rank: Rank) -> End:
    """As a library in C may do: no ConfigError of ours."""
    if here:
        wait_for_all(rank)
        os._exit(2)
    return waits()


def starts_a_daemon(here: bool, rank: Rank) -> End:
    talk = "import sys, time\nwhile time.sleep(0.01) is None: print('daemon', sys.argv, flush=True)"
    subprocess.Popen([sys.executable, "-c", talk, sys.argv[1]], start_new_session=True)
    time.sleep(0.3)
    return End()


def all_deaf(here: bool, rank: Rank) -> End:
    signal.pthread_sigmask(signal.SIG_BLOCK, EVERY_STOP)
    return all_wait(here, rank)


def all_wait(here: bool, rank: Rank) -> End:
    print("waiting", flush=True)
    return waits()


def trains(here: bool, rank: Rank) -> End:
    """Steps that last a moment, ends as a training does. What ranks agree on goes through files: all of a step's, as a collective."""
    with deferred() as asked:
        return _train(Preemption(Trainer(), asked, Path(sys.argv[1]), started=time.time()), rank)


def trains_for_an_hour(here: bool, rank: Rank) -> End:
    """Whose hour is over in a second on rank 1, and in an hour on others."""
    started = time.time() - (3599 if here else 0)
    with deferred() as asked:
        return _train(Preemption(Trainer(), asked, Path(sys.argv[1]), started=started, max_hours=1), rank)


def saves_never(here: bool, rank: Rank) -> End:
    """The chosen rank ends without having saved anything, and the others hang, as in a collective with it."""
    if here:
        return all_wait(here, rank)
    with deferred():
        return all_deaf(here, rank)


def all_hang_in_a_step(here: bool, rank: Rank) -> End:
    with deferred():
        return all_deaf(here, rank)


class Trainer:
    def __init__(self) -> None:
        self.control = SimpleNamespace(should_save=False)


def _train(preemption: Preemption, rank: Rank) -> End:
    folder = Path(sys.argv[1]) / "checkpoints"
    folder.mkdir(exist_ok=True)
    print("waiting", flush=True)
    for step in range(1000):
        time.sleep(0.05)
        preemption.act(_sum(step, preemption.count(), rank))
        if preemption.trainer.control.should_save:
            time.sleep(0.5)
            if rank.is_first:
                (folder / f"checkpoint-{step}").touch()
            while not (folder / f"checkpoint-{step}").exists():
                time.sleep(0.01)
            preemption.saved(step)
    return End(1, "nobody asked it to stop")


def _sum(step: int, count: int, rank: Rank) -> int:
    parts = [Path(sys.argv[1]) / f"count-{step}-{n}" for n in range(rank.world_size)]
    aside = parts[rank.number].with_suffix(".aside")
    aside.write_text(str(count))
    aside.replace(parts[rank.number])
    while not all(part.exists() for part in parts):
        time.sleep(0.01)
    return sum(int(part.read_text()) for part in parts)


def shows_a_bar(here: bool, rank: Rank) -> End:
    for step in range(3):
        sys.stderr.write(f"\r{step + 1}/3")
        sys.stderr.flush()
        time.sleep(0.2)
    sys.stderr.write("\n")
    print(f"done {rank.number}")
    return End()


STORIES = {
    story.__name__: story
    for story in (
        *(finishes, says_75, says_3, kills_itself, is_deaf, complains_at_length, exits_with_2, starts_a_daemon),
        *(all_deaf, all_wait, trains, trains_for_an_hour, saves_never, all_hang_in_a_step, shows_a_bar),
    )
}

if __name__ == "__main__":
    sys.exit(main())
