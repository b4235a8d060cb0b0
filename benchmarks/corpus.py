"""A corpus of synthetic audio with LibriSpeech's lengths: train-clean-100's for training, dev-clean's for evaluation.

    python benchmarks/corpus.py [folder] [--train 500] [--dev 100] [--format flac] [--longest 20] [--seed 0]

Noise with a spectrum and syllables roughly like speech, so that flac compresses it about as it does speech, and
transcripts of 14 characters a second. NeMo's manifests: `dataset=jsonl dataset.root=<what is printed>
dataset.eval_split=dev.jsonl` reads it. Made once: a folder that holds the same corpus is used again. Prints a table of
the lengths and, as the last line, a JSON object. The other benchmarks make their own by `make`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

VERSION = 1
RATE_HZ = 16000
CHARACTERS_A_SECOND = 14
DEFAULT_FOLDER = Path(tempfile.gettempdir(), "asr-benchmarks")
FORMATS = {"wav": "PCM_16", "flac": "PCM_16"}

QUANTILES = {
    "train": ((0, 1.4), (0.02, 2.6), (0.05, 4.4), (0.1, 6.7), (0.2, 11.2), (0.25, 12.0),
              (0.5, 13.9), (0.75, 15.0), (0.9, 15.8), (0.97, 16.4), (0.995, 17.2), (1, 24.5)),
    "dev": ((0, 1.4), (0.1, 2.6), (0.25, 3.7), (0.5, 5.9), (0.75, 8.9), (0.9, 13.4), (0.95, 16.4), (0.99, 22.8), (1, 32.6)),
}  # fmt: skip
"""Seconds of the utterance below which a share of the split lies; straight lines between."""
MEASURED = {
    "train": {"mean": 12.7, "median": 13.9, "max": 24.5},
    "dev": {"mean": 7.2, "median": 5.9, "max": 32.6},
}
"""What train-clean-100 and dev-clean have."""


def seconds_at(split: str, shares: ArrayLike) -> NDArray[np.float64]:
    """Return the quantile function of a split's lengths, in seconds, at shares from 0 to 1."""
    at, seconds = zip(*QUANTILES[split], strict=True)
    return np.interp(shares, at, seconds)


def lengths(split: str, count: int, longest_seconds: float | None = None) -> NDArray[np.float64]:
    """Return `count` lengths in seconds, evenly spread over the quantiles from least to greatest; a single one is the median.

    `longest_seconds` leaves out the share of the split that is longer.
    """
    at, seconds = zip(*QUANTILES[split], strict=True)
    share = 1.0 if longest_seconds is None else float(np.interp(longest_seconds, seconds, at))
    return seconds_at(split, np.linspace(0, share, count) if count > 1 else [share / 2])


def summary(seconds: NDArray[np.float64]) -> dict[str, float]:
    return {"mean": float(seconds.mean()), "median": float(np.median(seconds)), "max": float(seconds.max())}


def check() -> None:
    """Hold the quantile functions against LibriSpeech's figures: within 1 %, and most of training between 12 and 16 s."""
    for split, wanted in MEASURED.items():
        found = summary(lengths(split, 100_001))
        for name, value in wanted.items():
            assert abs(found[name] / value - 1) < 0.01, f"{split}: {name} is {found[name]:.2f}, LibriSpeech's is {value}"
    train = lengths("train", 100_001)
    assert ((train >= 12) & (train <= 16)).mean() > 0.5


def make(
    folder: Path = DEFAULT_FOLDER,
    *,
    train: int,
    dev: int,
    audio_format: str = "flac",
    longest_seconds: float | None = None,
    seed: int = 0,
) -> Path:
    """Return the folder of the corpus, below `folder`; make it unless it is there with the same parameters."""
    check()
    parameters = {"version": VERSION, "train": train, "dev": dev, "format": audio_format, "longest": longest_seconds, "seed": seed}
    name = f"{audio_format}-{train}-{dev}" + (f"-{longest_seconds:g}s" if longest_seconds else "") + (f"-seed{seed}" if seed else "")
    root, stated = folder / name, folder / name / "corpus.json"
    if stated.is_file() and json.loads(stated.read_text()) == parameters:
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for position, (split, count) in enumerate((("train", train), ("dev", dev))):
        (root / split).mkdir()
        dice = np.random.default_rng((seed, position))
        shuffled = dice.permutation(lengths(split, count, longest_seconds))
        jobs = [(root / split / f"{i:06}.{audio_format}", float(s), (seed, position, i)) for i, s in enumerate(shuffled)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(_write, jobs, chunksize=16))
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stated.write_text(json.dumps(parameters))  # last: a folder without it was not finished
    return root


def audio_files(root: Path, split: str = "train") -> list[Path]:
    """Return the audio files of a split, in the manifest's order."""
    with (root / f"{split}.jsonl").open() as lines:
        return [root / json.loads(line)["audio_filepath"] for line in lines]


def _write(job: tuple[Path, float, tuple[int, ...]]) -> dict[str, object]:
    path, seconds, seed = job
    dice = np.random.default_rng(seed)
    soundfile.write(path, speech_like(round(seconds * RATE_HZ), dice), RATE_HZ, subtype=FORMATS[path.suffix[1:]])
    return {"audio_filepath": f"{path.parent.name}/{path.name}", "duration": round(seconds, 3), "text": transcript(seconds, dice)}


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.float32]:
    """Return two minutes of noise that falls 6 dB an octave above 500 Hz."""
    count = 120 * RATE_HZ
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(count))
    spectrum /= np.sqrt(1 + (np.fft.rfftfreq(count, 1 / RATE_HZ) / 500) ** 2)
    noise = np.fft.irfft(spectrum)
    return (noise / noise.std()).astype(np.float32)


def speech_like(num_samples: int, dice: np.random.Generator) -> NDArray[np.float32]:
    """Return float32 [samples]: noise that swells four times a second, over a quiet floor."""
    start = dice.integers(len(_noise()) - num_samples)
    syllables = np.sin(np.arange(num_samples, dtype=np.float32) * np.float32(np.pi * 4 / RATE_HZ) + np.float32(dice.uniform(0, np.pi))) ** 4
    return _noise()[start : start + num_samples] * (0.001 + 0.035 * syllables)


def transcript(seconds: float, dice: np.random.Generator) -> str:
    """Return words of random letters, CHARACTERS_A_SECOND of them with the spaces."""
    letters = dice.choice(list("abcdefghijklmnopqrstuvwxyz"), max(1, round(seconds * CHARACTERS_A_SECOND)))
    letters[5:-1:6] = " "
    return "".join(letters)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="where it is made and kept")
    parser.add_argument("--train", type=int, default=500, help="utterances")
    parser.add_argument("--dev", type=int, default=100, help="utterances")
    parser.add_argument("--format", choices=FORMATS, default="flac")
    parser.add_argument("--longest", type=float, help="seconds; the share of longer utterances is left out")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    root = make(asked.folder, train=asked.train, dev=asked.dev, audio_format=asked.format, longest_seconds=asked.longest, seed=asked.seed)
    print(root)
    print("split   utterances    hours     mean   median      max   (LibriSpeech's)       MB   of PCM16")
    figures = {}
    for split in ("train", "dev"):
        files = audio_files(root, split)
        seconds = np.array([soundfile.info(file).duration for file in files])
        size = sum(file.stat().st_size for file in files)
        figures[split] = {"utterances": len(files), **summary(seconds), "bytes": size}
        theirs = "/".join(f"{value:g}" for value in MEASURED[split].values())
        print(
            f"{split:5} {len(files):12} {seconds.sum() / 3600:8.2f} {seconds.mean():8.2f} {np.median(seconds):8.2f} {seconds.max():8.2f}"
            f"   {theirs:15} {size / 1e6:10.1f} {size / (seconds.sum() * RATE_HZ * 2):10.2f}"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
