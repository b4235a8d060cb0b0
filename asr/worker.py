"""`python -m asr.worker <run directory>`: works on a prepared run in a process of its own.

In: a run directory that the parent has prepared. Out: its results, and the exit code of the contract.
"""

from __future__ import annotations

import sys
from pathlib import Path

from asr import runs
from asr.experiment import guarded, work


def main() -> int:
    run = runs.Run.load(Path(sys.argv[1]))
    runs.configure_logging(run.path)

    def story() -> int:
        work(run)
        return 0

    return guarded(run, story)


if __name__ == "__main__":
    sys.exit(main())
