"""Faults made for real and in numbers: what is found out, what goes on equal, and what nothing breaks.

    python benchmarks/faults.py kills [--times 100] [--seed 0]
    python benchmarks/faults.py cuts [--times 50] [--seed 0]
    python benchmarks/faults.py fuzz [--seed 6] [--share 1.0]

kills: a short run that never stops, then the same run killed by SIGKILL at a random moment and gone on with (resume=auto), each time
compared: weights, metrics, predictions and logged losses must be equal, bit for bit. cuts: files of checkpoints cut at random
offsets, each of which must be found out. fuzz: 2,000 fuzzed command lines and 300 spoilt copies of conf/ up to where a run would
start, 50 refused launches as processes of their own, and 500 spoilt audio files, read as a run reads them; `--share 0.1` takes a tenth
of each, and what fails is shown with the seed and the number that make it again. Seconds are those of this machine as it is:
run it alone. Prints a table; as the last line, a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fuzz"))

import killing
import tallies

FUZZED = {"command lines": (tallies.command_lines, 2000), "trees of files": (tallies.trees, 300), "launches": (tallies.launches, 50)}
FUZZED |= {"audio files": (tallies.sounds, 500)}


def kills(folder: Path, times: int, seed: int) -> dict[str, Any]:
    """Kill and resume a run many times; return how many ended equal to the one that never stopped."""
    killing.import_libraries()
    config = killing.composed([*killing.SHORT, "resume=auto"])
    reference = folder / "reference"
    code, _ = killing.run(config, reference)
    assert code == 0, reference.with_suffix(".said").read_text(encoding="utf-8")
    expected = killing.results(reference)
    begun: list[float] = []

    def saves(run_dir: Path) -> bool:
        if not begun and (run_dir / "checkpoints").exists():
            begun.append(time.monotonic())
        return False

    before = time.monotonic()
    code, seconds = killing.run(config, folder / "again", until=lambda: saves(folder / "again"))  # its data is cached: as for the others
    assert code == 0 and not killing.differences(expected, killing.results(folder / "again")), "two runs of one configuration differ"
    until_it_saves = begun[0] - before
    dice = random.Random(seed)
    equal, killed, resumed_at, problems = 0, 0, [], []
    for number in range(times):
        run_dir = folder / f"{number:03}"
        moments = [dice.uniform(0.0 if number % 5 == 0 else until_it_saves, seconds) for _ in range(1 + (number % 4 == 0))]  # some twice
        for moment in sorted(moments):
            at = time.monotonic() + moment
            code, _ = killing.run(config, run_dir, until=lambda at=at: time.monotonic() >= at)
            killed += code == 137
        code, _ = killing.run(config, run_dir)
        said = run_dir.with_suffix(".said").read_text(encoding="utf-8")
        found = [f"exit code {code}: {said[-2000:]}"] if code else killing.differences(expected, killing.results(run_dir))
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        resumed_at.append(int(record.get("resumed_from", "checkpoint-0").rpartition("-")[2]))
        equal += not found
        problems += [f"{number} (killed after {moments} s, went on from step {resumed_at[-1]}): {text}" for text in found]
        print(f"{number + 1:4} of {times}: {'equal' if not found else found[0][:300]}, from step {resumed_at[-1]}", flush=True)
        if not found:
            shutil.rmtree(run_dir)
    steps = {f"from_step_{step}": resumed_at.count(step) for step in sorted(set(resumed_at))}
    print("\n".join(problems))
    return {"kills": killed, "resumes": times, "equal": equal, "seconds_of_a_run": round(seconds, 2), **steps}


def cuts(folder: Path, times: int, seed: int) -> dict[str, Any]:
    """Cut a file of a checkpoint at a random offset, many times; return how many were found out."""
    from asr import checkpoints

    killing.import_libraries()
    run_dir = folder / "run"
    code, _ = killing.run(killing.composed(killing.SHORT), run_dir)
    assert code == 0, run_dir.with_suffix(".said").read_text(encoding="utf-8")
    whole = checkpoints.every(run_dir / "checkpoints")
    before, newest = whole[-2].path, whole[-1].path
    dice = random.Random(seed)
    detected, seconds = 0, []
    for number in range(times):
        there = folder / f"cut-{number:03}"
        for path in (before, newest):
            shutil.copytree(path, there / path.name)
        files = sorted(path for path in (there / newest.name).iterdir() if path.stat().st_size)
        file = dice.choice(files)
        size = file.stat().st_size
        os.truncate(file, offset := dice.randrange(size))
        begin = time.perf_counter()
        found = checkpoints.newest_good(there)
        seconds.append(time.perf_counter() - begin)
        detected += found is not None and found.path.name == before.name
        print(f"{number + 1:4} of {times}: {file.name} cut to {offset} of {size} bytes: gone on from {found and found.path.name}")
        shutil.rmtree(there)
    return {"cuts": times, "detected": detected, "median_seconds_to_look": round(statistics.median(seconds), 4)}


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


FAULTS = {"kills": (kills, 100, 0), "cuts": (cuts, 50, 0)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    faults = parser.add_subparsers(dest="fault", required=True)
    for name, (_, times, seed) in FAULTS.items():
        counted = faults.add_parser(name)
        counted.add_argument("--times", type=int, default=times)
        counted.add_argument("--seed", type=int, default=seed)
        counted.add_argument("--corpus", type=Path, help="the folder that the runs are made in; a temporary one without it")
    fuzzed = faults.add_parser("fuzz")
    fuzzed.add_argument("--seed", type=int, default=6)
    fuzzed.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args(arguments)
    if options.fault == "fuzz":
        figures = fuzz(options)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            figures = FAULTS[options.fault][0](options.corpus or Path(temporary), options.times, options.seed)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
