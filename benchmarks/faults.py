"""How often a fault loses something, of many that are made on purpose.

    python benchmarks/faults.py fuzz [--seed 6] [--share 1.0]

fuzz: 2,000 fuzzed command lines and 300 spoilt copies of conf/ up to where a run would start, 50 refused launches as processes
of their own, and 500 spoilt audio files, read as a run reads them. `--share 0.1` takes a tenth of each. What fails is shown with
the seed and the number that make it again. Seconds are those of this machine as it is: run it alone. As the last line, a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fuzz"))

import tallies

FUZZED = {"command lines": (tallies.command_lines, 2000), "trees of files": (tallies.trees, 300), "launches": (tallies.launches, 50)}
FUZZED |= {"audio files": (tallies.sounds, 500)}


def fuzz(options: argparse.Namespace) -> dict[str, object]:
    """Try what is malformed; print a line a kind, then what failed."""
    figures: dict[str, object] = {}
    failures = []
    print(f"{'':16}{'cases':>6}{'worst seconds':>15}{'peak MiB':>10}{'failures':>10}   how they ended")
    for kind, (tried, number) in FUZZED.items():
        with tempfile.TemporaryDirectory() as folder:
            tally = tried(options.seed, max(1, round(number * options.share)), Path(folder))
        ended = {str(code): count for code, count in tally.codes.most_common()}
        listed = ", ".join(f"{count} {code}" for code, count in ended.items())
        figures[kind] = {"ended": ended, "worst_seconds": tally.worst_seconds, "failures": len(tally.failures)}
        failures += tally.failures
        peak = f"{tally.peak_bytes >> 20 or ''}"  # of a process of its own, it isn't measured
        print(f"{kind:16}{tally.codes.total():6}{tally.worst_seconds:15.2f}{peak:>10}{len(tally.failures):10}   {listed}", flush=True)
        print(f"{'':16}the slowest: {tally.worst}", flush=True)
    print(*failures, sep="\n")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    faults = parser.add_subparsers(dest="fault", required=True)
    fuzzed = faults.add_parser("fuzz")
    fuzzed.add_argument("--seed", type=int, default=6)
    fuzzed.add_argument("--share", type=float, default=1.0)
    fuzzed.set_defaults(made=fuzz)
    options = parser.parse_args(arguments)
    print(json.dumps(options.made(options)))


if __name__ == "__main__":
    main()
