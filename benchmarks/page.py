"""What a run's page costs: seconds at the end of a run, and bytes.

    python benchmarks/page.py [--utterances 2600] [--steps 20000]

Makes a run directory with so many utterances of about 20 words, 8 % of them wrong, each with 16 s of noise to hear, and a log line
every 50 steps; writes its page once, as the parent of a run does, matplotlib's import included. Prints a line, and as the last one a
JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from asr import composition, run_report
from asr.manifest import Manifest
from asr.runs import Run
from asr.sources import Utterance

SECONDS = 16.0
WORDS = [f"word{number}" for number in range(3000)]


def made(folder: Path, utterances: int, steps: int) -> Run:
    """Return a run that has ended, as far as its page looks at it."""
    dice = random.Random(0)
    noise = folder / "noise.flac"
    soundfile.write(noise, np.random.default_rng(0).normal(0, 0.05, round(SECONDS * 16000)), 16000)
    run = Run.create(folder / "run", composition.to_container(composition.compose([])), command=[], overrides=[])
    said = [dice.choices(WORDS, k=max(1, round(dice.lognormvariate(2.8, 0.6)))) for _ in range(utterances)]
    heard = [[dice.choice(WORDS) if dice.random() < 0.08 else word for word in words] for words in said]
    rows = [Utterance(f"u{i}", noise, " ".join(words), f"speaker{i % 40}", SECONDS) for i, words in enumerate(said)]
    Manifest("test", tuple(rows)).save(run.path / "manifest" / "eval.jsonl")
    run.write_predictions(
        {"id": row.id, "reference": row.text, "hypothesis": " ".join(words), "seconds": SECONDS, "errors": 0}
        for row, words in zip(rows, heard, strict=True)
    )
    events = [{"step": step, "loss": 1 + 20 / step, "learning_rate": 1e-4, "eval_wer": 1 / step} for step in range(50, steps + 1, 50)]
    (run.path / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    run.write_metrics({"eval_wer": 0.08, "eval_wer_low": 0.07, "eval_wer_high": 0.09})
    run.finish(0)
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=2600)
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = made(Path(folder), asked.utterances, asked.steps)
        begin, cpu = time.perf_counter(), time.process_time()
        page = run_report.write(run)
        figures = {
            "utterances": asked.utterances,
            "seconds": round(time.perf_counter() - begin, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "megabytes": round(page.stat().st_size / 1e6, 2),
        }
    print("{utterances} utterances: {seconds} s, {cpu_seconds} s of a core, {megabytes} MB".format(**figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
