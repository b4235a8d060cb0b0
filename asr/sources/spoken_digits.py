"""Spoken digits: a small corpus of real (synthesised) speech, made on first use.

In: a seed and sizes. Out: 16 kHz wav files with transcripts; no voice and no sentence is in two splits.
Speech is by espeak-ng (the wheel espeakng-loader has library and voices), a GPL-3.0 program that runs in
processes of its own. It teaches the pipeline, not the world: another synthesiser stays near 84% WER.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from asr.config import bounded, cache_root
from asr.errors import ConfigError, DataError, did_you_mean
from asr.permissions import umask
from asr.sources import Source, Utterance
from asr.sources.espeak import SAMPLE_RATE_HZ, Line, Voice, speak

log = logging.getLogger(__name__)

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland")  # espeak-ng's file name of British English is "en"
SPLITS = ("train", "validation", "test")
RECIPE = 1  # raise it when the same arguments give other audio


@dataclass(kw_only=True)
class SpokenDigits(Source):
    """Sequences of digits by synthetic voices that differ in accent, formants, pitch and pace.

    Raises ConfigError when espeakng-loader isn't installed or a split doesn't exist.
    """

    makes_root: ClassVar[bool] = True

    corpus_seed: int = bounded(0, at_least=0)
    """Decides voices and sentences; apart from `seed`, so that runs of several seeds share a corpus."""
    num_train_utterances: int = bounded(2000, at_least=1)
    num_validation_utterances: int = bounded(200, at_least=1)
    num_test_utterances: int = bounded(200, at_least=1)
    num_train_speakers: int = bounded(100, at_least=1, at_most=200)
    """Validation and test have a fifth as many voices each, and at least one."""
    min_digits: int = bounded(2, at_least=1)
    max_digits: int = bounded(6, at_most=12)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_digits < self.min_digits:
            raise ConfigError(f"{self.max_digits} is below min_digits ({self.min_digits}).", key="max_digits")
        for key in ("train_split", "eval_split"):
            split = getattr(self, key)
            if split not in SPLITS:
                raise ConfigError(
                    f"spoken_digits has no split {split!r}; it has {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}",
                    key=key,
                )

    @property
    def name(self) -> str:
        return "spoken_digits"

    def fingerprint(self) -> str:
        made_from = ("corpus_seed", "num_train_speakers", "min_digits", "max_digits", *(f"num_{s}_utterances" for s in SPLITS))
        inputs = {key: getattr(self, key) for key in made_from} | {"recipe": RECIPE, "engine": _engine_version()}
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]

    def utterances(self, split: str) -> Iterator[Utterance]:
        folder = self.folder()
        try:
            if not folder.is_dir():
                self._make(folder)
            rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder} can't be made or read ({error}): check dataset.root, or remove the folder to make it anew."
            ) from error
        for row in rows:
            yield Utterance(row["id"], folder / row["audio"], row["text"], row["speaker"])

    def folder(self) -> Path:
        """Return where the corpus lies; its name holds the fingerprint, so another recipe is another folder."""
        return cache_root(self.root, "spoken_digits") / self.fingerprint()

    def _make(self, folder: Path) -> None:
        """Synthesise all splits beside `folder` and move them there at once, so that a stop leaves no half corpus."""
        if find_spec("espeakng_loader") is None:
            raise ConfigError("spoken_digits needs espeak-ng: pip install 'asr-gaudi[digits]' (or `make setup`).", key="_target_")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            plan = {split: self.plan(split) for split in SPLITS}
            seconds = speak([line for lines in plan.values() for line in lines], aside, progress="synthesising digits")
            for split, lines in plan.items():
                rows = ({"id": x.id, "audio": x.audio, "text": x.text, "speaker": x.voice.name} for x in lines)
                (aside / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
            aside.chmod(0o777 & ~umask())
            try:
                aside.replace(folder)
            except OSError:  # another process made the same corpus meanwhile
                if not folder.is_dir():
                    raise
            log.info("spoken_digits: made %.0f s of speech at %d Hz in %s", seconds, SAMPLE_RATE_HZ, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def plan(self, split: str) -> list[Line]:
        """Return who says what in a split; the same for the same arguments, nothing shared between splits."""
        dice = random.Random(f"{self.corpus_seed}/{split}")
        num_speakers = self.num_train_speakers if split == "train" else max(1, self.num_train_speakers // 5)
        voices = [_voice(dice, f"{split}{i:03d}") for i in range(num_speakers)]
        lines = []
        for i in range(getattr(self, f"num_{split}_utterances")):
            voice = voices[i * num_speakers // getattr(self, f"num_{split}_utterances")]
            text = self._sentence(dice, split)
            name = f"{voice.name}-{i:05d}"
            lines.append(Line(name, f"{split}/{name}.wav", text, voice, dice.randint(135, 190), dice.randint(30, 70)))
        return lines

    def _sentence(self, dice: random.Random, split: str) -> str:
        while True:
            text = " ".join(dice.choices(WORDS, k=dice.randint(self.min_digits, self.max_digits)))
            if split_of(text) == split:
                return text


def split_of(text: str) -> str:
    """Return the one split that may hold a sentence: 8 of 10 go to train."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10
    return SPLITS[max(0, bucket - 7)]


def _voice(dice: random.Random, name: str) -> Voice:
    """Return a random voice: a vocal tract length, formants that scatter around it, and a pitch to match."""
    scale = dice.uniform(0.86, 1.25)
    formants = tuple(round(100 * scale * dice.uniform(0.94, 1.06)) for _ in range(6))
    low = round(dice.uniform(0.8, 1.2) * (75 + 120 * (scale - 0.86) / 0.39))
    return Voice(
        name=name,
        accent=dice.choice(ACCENTS),
        formants_percent=formants,
        pitch_hz=(low, round(low * dice.uniform(1.25, 1.6))),
        flutter=dice.randint(0, 6),
        voicing=dice.randint(80, 110),
    )


def _engine_version() -> str:
    try:
        return version("espeakng-loader")
    except PackageNotFoundError:
        return "none"
