"""`python -m asr.worker <run directory>`: one rank of a prepared run, started by a launcher.

In: a run directory that the parent has prepared. Out: the run's results, by rank 0, and ranks/<n>.json by each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from asr.ranks import Rank, guard
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

    return guard(rank, run_dir, story, stop_seconds=topology["stop_seconds"])


def _work(run_dir: Path, rank: Rank) -> End:
    from asr import experiment, runs  # after the fork: numpy starts threads

    runs.configure_logging(None)

    def story() -> End:
        experiment.work(runs.Run.load(run_dir), rank)
        return End()

    return experiment.explained(story, run_dir)


if __name__ == "__main__":
    sys.exit(main())
