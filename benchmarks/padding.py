"""Audio seconds a second of training and of evaluation: buckets against fixed and longest padding.

    python benchmarks/padding.py [--train 64] [--dev 96] [--batch-size 8] [--rounds 2] [--override key=value ...]

The real trainer in this process, on the same utterances (at most 20 s, lengths of LibriSpeech clean-100 for training
and dev-clean for evaluation), the same model and the same per-device batch size: `fixed` takes that many rows of 20 s,
`buckets` as many padded seconds, `longest` that many rows padded to the longest of them, with
trainer.args.group_by_length and without. Every arm trains an epoch and evaluates once a round, in turn, so that a slow
moment of the machine hits all alike; before that every arm takes a step that is not counted. Prints medians over the
rounds; as the last line, a JSON object, in which `a_vs_b` is the median of the rounds' ratios of a's speed to b's.
OMP_NUM_THREADS says with how many threads (the configuration: 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpus
import trainers

LONGEST_SECONDS = 20.0
ARMS = {
    "buckets": ["batching=buckets"],
    "fixed": ["batching=fixed"],
    "longest": ["batching=longest", "trainer.args.group_by_length=true"],
    "longest, shuffled": ["batching=longest"],
}
"""`longest` is the usual dynamic padding at its best: rows of like length share a batch."""


def warm_up(trainer: Any) -> None:
    """Take one step: the first batch of an epoch is the largest there is."""
    trainer.args.max_steps = 1
    trainer.train()
    trainer.args.max_steps = -1


def epoch(trainer: Any) -> dict[str, float]:
    """Train an epoch, evaluate once, and return audio seconds a second of both, counted at the model's forward."""
    from asr.trainer import Forwarded

    trainer.forwarded = {"train": Forwarded(), "eval": Forwarded()}
    runtime = {"train": trainer.train().metrics["train_runtime"], "eval": trainer.evaluate()["eval_runtime"]}
    return {phase: trainer.forwarded[phase].audio_seconds / runtime[phase] for phase in runtime}


def measure(asked: argparse.Namespace, root: Path, folder: Path) -> tuple[list[dict[str, dict[str, float]]], dict[str, Any]]:
    """Return the speeds of every arm in every counted round, and the trainers."""
    options = [
        f"model={asked.model}",
        f"dataset.max_duration_in_seconds={LONGEST_SECONDS}",
        "trainer.args.num_train_epochs=1",
        f"trainer.args.per_device_train_batch_size={asked.batch_size}",
        f"trainer.args.per_device_eval_batch_size={asked.batch_size}",
        *asked.override,
    ]
    arms = {name: trainers.built(folder / name, root, *options, *ours) for name, ours in ARMS.items()}
    for trainer in arms.values():
        warm_up(trainer)
    rounds = [{name: epoch(trainer) for name, trainer in arms.items()} for _ in range(asked.rounds)]
    heard = {name: round(sum(u.seconds for u in trainer.train_dataset.utterances), 3) for name, trainer in arms.items()}
    assert len(set(heard.values())) == 1, f"the arms train on different utterances: {heard}"
    return rounds, arms


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=64, help="utterances")
    parser.add_argument("--dev", type=int, default=96, help="utterances")
    parser.add_argument("--batch-size", type=int, default=8, help="per device, of all arms")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="wav2vec2_tiny", help="an option of conf/model")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides for all arms")
    parser.add_argument("--corpus", type=Path, default=corpus.DEFAULT_FOLDER, help="where synthetic audio is made and kept")
    asked = parser.parse_args(arguments)
    root = corpus.make(asked.corpus, train=asked.train, dev=asked.dev, audio_format="wav", longest_seconds=LONGEST_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        rounds, arms = measure(asked, root, Path(folder))
    speeds = {name: {phase: statistics.median(r[name][phase] for r in rounds) for phase in ("train", "eval")} for name in arms}

    def ratio(phase: str, other: str) -> float:
        return statistics.median(r["buckets"][phase] / r[other][phase] for r in rounds)

    seen = {name: trainer.forwarded for name, trainer in arms.items()}
    print("                    audio seconds a second   buckets over it     audio in input, %       shapes")
    print("batching             training  evaluation   train      eval     train        eval   train  eval")
    for name, speed in speeds.items():
        train, evaluation = seen[name]["train"], seen[name]["eval"]
        print(
            f"{name:18} {speed['train']:10.1f} {speed['eval']:11.1f} {ratio('train', name):7.2f} {ratio('eval', name):9.2f}"
            f" {100 * train.padding_efficiency:9.1f} {100 * evaluation.padding_efficiency:11.1f}"
            f" {len(train.shapes):7} {len(evaluation.shapes):5}"
        )
    figures = {
        "train_vs_fixed": ratio("train", "fixed"),
        "train_vs_longest": ratio("train", "longest"),
        "train_vs_longest_shuffled": ratio("train", "longest, shuffled"),
        "eval_vs_fixed": ratio("eval", "fixed"),
        "eval_vs_longest": ratio("eval", "longest"),
        "padding_efficiency": seen["buckets"]["train"].padding_efficiency,
        "num_train_shapes": len(seen["buckets"]["train"].shapes),
        "eval_padding_efficiency": seen["buckets"]["eval"].padding_efficiency,
        "num_eval_shapes": len(seen["buckets"]["eval"].shapes),
        "audio_seconds_per_second": speeds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
