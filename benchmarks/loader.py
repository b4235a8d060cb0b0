"""Batches a second of the trainer's own loader, against bare soundfile decoding of the same files on the same cores.

    python benchmarks/loader.py [--utterances 600] [--batch-size 8] [--rounds 5]

The loader decodes, normalises, pads and hands over; there is no model. Bare decoding reads the same files into float32 in
as many processes and drops them. `ratio` is the time of bare decoding over that of the loader, the median over rounds of
one each in turn, for flac (LibriSpeech's format) with a worker a core; the table also has wav, and the loader without
workers against decoding in one process. Starting workers counts for neither. As the last line, a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import corpus
import soundfile
import trainers


def decode(path: Path) -> int:
    return len(soundfile.read(path, dtype="float32")[0])


def bare_decoding(files: Sequence[Path], workers: int, stack: ExitStack) -> Callable[[], float]:
    """Return what decodes all files once and gives the seconds that took; its processes start here and stay."""
    if workers:
        pool = stack.enter_context(ProcessPoolExecutor(workers))
        list(pool.map(decode, files[:workers]))
        decoded: Callable[[], Any] = lambda: list(pool.map(decode, files, chunksize=8))  # noqa: E731
    else:
        decoded = lambda: [decode(file) for file in files]  # noqa: E731

    def work() -> float:
        begin = time.perf_counter()
        decoded()
        return time.perf_counter() - begin

    return work


def loading(trainer: Any) -> Callable[[], float]:
    """Return what iterates over all batches of an epoch and gives the seconds that took, workers' start excluded."""
    loader = trainer.get_train_dataloader()

    def work() -> float:
        batches = iter(loader)
        begin = time.perf_counter()
        for _ in batches:
            pass
        return time.perf_counter() - begin

    list(loader)  # persistent workers are there from now on
    return work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--corpus", type=Path, default=corpus.DEFAULT_FOLDER, help="where synthetic audio is made and kept")
    asked = parser.parse_args(arguments)
    figures: dict[str, dict[str, float]] = {}
    for audio_format in ("flac", "wav"):
        root = corpus.make(asked.corpus, train=asked.utterances, dev=1, audio_format=audio_format)
        for workers in (os.cpu_count() or 1, 0):
            figures[f"{audio_format}, {workers} workers"] = measure(root, workers, asked)
    print("format, workers       loader, batches/s   bare decoding, batches/s   ratio")
    for name, row in figures.items():
        print(f"{name:20} {row['loader']:18.2f} {row['bare']:26.2f} {row['ratio']:7.2f}")
    print(json.dumps({"ratio": next(iter(figures.values()))["ratio"], "figures": figures}))


def measure(root: Path, workers: int, asked: argparse.Namespace) -> dict[str, float]:
    """Return batches a second of the loader and of bare decoding, and the median of their ratios."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bare = bare_decoding(corpus.audio_files(root), workers, stack)  # forked before torch is imported
        trainer = trainers.built(
            Path(folder, "run"),
            root,
            "model=wav2vec2_tiny",
            f"trainer.args.per_device_train_batch_size={asked.batch_size}",
            f"trainer.args.dataloader_num_workers={workers}",
            f"trainer.args.dataloader_persistent_workers={str(workers > 0).lower()}",
        )
        loaded = loading(trainer)
        rounds = [(loaded(), bare()) for _ in range(asked.rounds)]
        num_batches = len(trainer.get_train_dataloader())
    return {
        "loader": num_batches / statistics.median(ours for ours, _ in rounds),
        "bare": num_batches / statistics.median(theirs for _, theirs in rounds),
        "ratio": statistics.median(theirs / ours for ours, theirs in rounds),
    }


if __name__ == "__main__":
    main()
