"""`python -m asr.worker <run directory>`: one rank of a prepared run, started by a launcher.

In: a run directory that the parent has prepared. Out: the run's results, by rank 0, and ranks/<n>.json by each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from asr.ranks import Rank, for_launcher, guard, has_lost_parent
from asr.stops import End, Terminated, ended_by, listen_once


def main() -> int:
    run_dir = Path(sys.argv[1])
    rank = Rank.of(os.environ)
    os.environ.update(rank.variables())
    topology = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))["topology"]

    def story() -> End:
        listen_once()
        try:
            return _work(run_dir, rank)
        except (KeyboardInterrupt, Terminated) as stop:
            return ended_by(stop)

    code = guard(rank, run_dir, story, stop_seconds=topology["stop_seconds"], preempt_seconds=topology["preempt_seconds"])
    if rank.is_first and run_dir.is_dir() and has_lost_parent(run_dir):
        _record_end(run_dir, code)
    return for_launcher(code)


def _record_end(run_dir: Path, code: int) -> None:
    """Record how a run ended whose parent was killed and can't."""
    from asr import runs

    run = runs.Run.load(run_dir)
    if run.record["status"] == "running":
        run.finish(code or 1, "its parent process was killed")


def _work(run_dir: Path, rank: Rank) -> End:
    from asr import experiment, leases, runs  # after the fork: numpy starts threads

    runs.configure_logging(None)

    def story() -> End:
        leases.join()
        run = runs.Run.load(run_dir)
        if run.config.get("rehearse"):
            from asr.rehearsal.story import work
        else:
            from asr.stages import work
        work(run, rank)
        return End()

    return experiment.explained(story, run_dir)


if __name__ == "__main__":
    sys.exit(main())
