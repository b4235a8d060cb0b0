"""What a sweep of four jobs takes beyond its four jobs.

    python benchmarks/sweep.py [--rounds 2] [--steps 150] [--utterances 2000]

Whole processes in turn: `python launch.py -m` over two learning rates and two batch sizes, and the same four configurations by four
commands, one after the other. Both use a cache of synthesised speech that is there before, nothing else in common. Printed: the
sweep's time over that of the four commands, and over the time that its jobs took (from a run's `started` to its `finished` in run.json):
what is left is composing, checking, the table and the page. As the last line, a JSON object with the medians of both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RATES, SIZES = ("1e-3", "2e-3"), (8, 16)
RATE, SIZE = "trainer.args.learning_rate", "trainer.args.per_device_train_batch_size"


def seconds_of(folder: Path, *overrides: str) -> float:
    """Return how long `python launch.py` takes with these overrides, started in a folder of its own."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "launch.py"), *overrides], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def inside_jobs(folder: Path) -> float:
    """Return the seconds that the jobs of a sweep took, by their records."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/run.json")]
    assert len(records) == len(RATES) * len(SIZES)
    return sum((datetime.fromisoformat(r["finished"]) - datetime.fromisoformat(r["started"])).total_seconds() for r in records)


def measured(rounds: int, common: Sequence[str]) -> dict[str, float]:
    """Print each round's times and return the medians of the two ratios."""
    over_commands, outside = [], []
    folder = Path(tempfile.mkdtemp(prefix="sweep-benchmark-"))
    try:
        seconds_of(folder, *common, "stages=[prepare]")  # synthesises the speech
        for number in range(rounds):
            grid = f"{RATE}={','.join(RATES)}", f"{SIZE}={','.join(map(str, SIZES))}"
            swept = seconds_of(folder, "-m", *common, *grid, f"hydra.sweep.dir=sweep{number}")
            single = [
                seconds_of(folder, *common, f"{RATE}={rate}", f"{SIZE}={size}", f"hydra.run.dir=single{number}-{rate}-{size}")
                for rate, size in product(RATES, SIZES)
            ]
            over_commands.append(swept / sum(single))
            outside.append(swept / inside_jobs(folder / f"sweep{number}"))
            ratios = f"{over_commands[-1]:.3f}, {outside[-1]:.3f} of its jobs"
            print(f"round {number}: sweep {swept:.1f} s, four commands {sum(single):.1f} s; {ratios}")
    finally:
        shutil.rmtree(folder)
    return {"sweep_over_four_commands": statistics.median(over_commands), "sweep_over_its_jobs": statistics.median(outside)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--utterances", type=int, default=2000)
    asked = parser.parse_args()
    common = [f"trainer.args.max_steps={asked.steps}", "trainer.args.save_strategy=no", f"dataset.num_train_utterances={asked.utterances}"]
    print(json.dumps(measured(asked.rounds, common)))


if __name__ == "__main__":
    main()
