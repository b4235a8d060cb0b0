"""`python -m asr.worker <run directory>`: works on a prepared run in a process of its own.

In: a run directory that the parent has prepared. Out: its results, and the exit code of the contract.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

from asr import runs
from asr.experiment import Terminated, ended_by, guarded, work


def main() -> int:
    _end_with_parent()
    run = runs.Run.load(Path(sys.argv[1]))
    runs.configure_logging(run.path)

    def story() -> int:
        work(run)
        return 0

    try:
        return guarded(run, story)
    except (KeyboardInterrupt, Terminated) as stop:
        return ended_by(stop)[0]


def _end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent dies, so that none is orphaned (man 2 prctl)."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
