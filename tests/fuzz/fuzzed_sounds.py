"""Audio files as bad disks, cut downloads and wrong tools leave them.

In: a seed and a number. Out: the bytes of one file with its suffix, and what reading it as a run does gives.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

RATE = 16000
FORMATS = [
    *(
        ("WAV", subtype)
        for subtype in ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")
    ),
    *(
        ("WAVEX", "PCM_16"),
        ("WAVEX", "FLOAT"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("W64", "FLOAT"),
        ("AIFF", "PCM_16"),
        ("AIFF", "FLOAT"),
    ),
    *(("AU", "PCM_16"), ("AU", "FLOAT"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS")),
    *(
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("NIST", "PCM_16"),
        ("SD2", "PCM_16"),
        ("VOC", "PCM_16"),
        ("SVX", "PCM_16"),
        ("MAT5", "FLOAT"),
    ),
]
SUFFIXES = "wav flac ogg mp3 opus aiff au w64 caf txt".split()
ABSURD = [
    0,
    1,
    2,
    0x7F,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1_000_000_000,
    0x7FF00000,
    0x7FC00000,
    0xFF800000,
]
CUT_SECONDS = 0.3
Spoil = Callable[[random.Random, bytearray], None]


@lru_cache
def _sound(container: str, subtype: str, channels: int, rate_hz: int) -> bytes:
    import numpy as np
    import soundfile

    time = np.arange(round(CUT_SECONDS * rate_hz)) / rate_hz
    wave = np.stack([0.4 * np.sin(2 * np.pi * (300 + 200 * k) * time) for k in range(channels)], axis=1)
    file = io.BytesIO()
    soundfile.write(file, wave, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def spoilt(seed: int, number: int) -> tuple[str, bytes]:
    """Return the suffix and the bytes of one file."""
    dice = random.Random(f"{seed}-{number}")
    container, subtype = dice.choice(FORMATS)
    suffix = container.lower() if dice.random() < 0.85 else dice.choice(SUFFIXES)
    try:
        content = bytearray(_sound(container, subtype, *dice.choice(((1, RATE), (1, RATE), (1, RATE), (2, 8000), (2, 48000)))))
    except (ValueError, RuntimeError, TypeError):  # this libsndfile writes no such file
        content = bytearray(_sound("WAV", "PCM_16", 1, RATE))
    for _ in range(dice.choices((0, 1, 2), (5, 75, 20))[0]):
        dice.choice(SPOILS)(dice, content)
    return suffix, bytes(content)


def cut(dice: random.Random, content: bytearray) -> None:
    del content[dice.randrange(len(content) + 1) :]


def cut_header(dice: random.Random, content: bytearray) -> None:
    del content[dice.randrange(min(len(content), 128) + 1) :]


def flip_bits(dice: random.Random, content: bytearray) -> None:
    for _ in range(dice.choice((1, 4, 64))):
        if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def flip_header(dice: random.Random, content: bytearray) -> None:
    for _ in range(dice.choice((1, 2, 8))):
        if content:
            content[dice.randrange(min(len(content), 64))] = dice.randrange(256)


def claim(dice: random.Random, content: bytearray) -> None:
    """Write an absurd number into the header: a rate of 10**9 Hz, 2**31 frames, 65535 channels, no bytes a sample."""
    form = dice.choice(("<I", ">I", "<H", ">H", "<Q", ">Q"))
    size = struct.calcsize(form)
    at = dice.randrange(max(1, min(len(content), 96) - size))
    if len(content) >= at + size:
        value = dice.choice(ABSURD) if dice.random() < 0.8 else dice.getrandbits(32)
        struct.pack_into(form, content, at, value % (1 << 8 * size))


def zero(dice: random.Random, content: bytearray) -> None:
    at = dice.randrange(len(content) + 1)
    size = min(dice.choice((4, 512, 4096)), len(content) - at)
    content[at : at + size] = bytes(size)


def no_numbers(dice: random.Random, content: bytearray) -> None:
    """Write what is NaN or infinite where samples are floats."""
    at = len(content) // 2 // 4 * 4
    content[at : at + 16] = struct.pack(dice.choice(("<4f", ">4f")), float("nan"), float("inf"), float("-inf"), 1e38)


def insert(dice: random.Random, content: bytearray) -> None:
    at = dice.randrange(len(content) + 1)
    content[at:at] = dice.randbytes(dice.choice((1, 3, 100)))


def repeat(dice: random.Random, content: bytearray) -> None:
    content += content[: dice.randrange(len(content) + 1)]


def other_magic(dice: random.Random, content: bytearray) -> None:
    magic = dice.choice(
        (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3\x04", b"FORM", b".snd", b"caff", b"NIST", b"\xff\xfb\x90\x64", b"8SVX", b"Crea")
    )
    content[: len(magic)] = magic


def random_bytes(dice: random.Random, content: bytearray) -> None:
    content[:] = dice.randbytes(dice.choice((0, 1, 44, 5000)))


SPOILS: list[Spoil] = [
    cut,
    cut,
    cut_header,
    flip_bits,
    flip_bits,
    flip_header,
    flip_header,
    claim,
    claim,
    claim,
    zero,
    no_numbers,
    insert,
    repeat,
]
SPOILS += [other_magic, random_bytes]


def sound_case(case: dict[str, Any]) -> dict[str, Any]:
    """Take one file the way of a run: its header, the manifest, a row of the dataset, a batch.

    `code` is decoded, reported, or says what was wrong.
    """
    import numpy as np

    from asr import manifest
    from asr.collate import BATCH_FACTS, Collator, UtteranceDataset
    from asr.errors import DataError
    from asr.labels import Labels
    from asr.sources import Source, Utterance

    suffix, content = spoilt(case["seed"], case["number"])
    path = Path(f"case-{case['number']}.{suffix}").absolute()
    path.write_bytes(content)

    class OneFile(Source):
        def utterances(self, split: str) -> Any:
            yield Utterance("one", path, "a")
            yield Utterance("a part", path, "a", seconds=0.1, start_seconds=0.1)

    facts: dict[str, Any] = {"suffix": suffix}
    try:
        table = manifest.build(OneFile(), "train", limit=None, normalise=str)
    except DataError as error:
        return facts | {"code": "reported", "err": str(error)}
    extractor = _extractor()
    data = UtteranceDataset(table.utterances, Labels.of([[3]] * len(table.utterances)), extractor, on_bad="drop")
    rows = [data[number] for number in range(len(data))]
    batch = Collator.for_extractor(extractor)(rows)
    path.unlink()
    said = [f"{row.reason}: {row.detail}" for row in table.left_out] + [row.problem for row in rows if row.problem]
    if not np.isfinite(batch["input_values"].numpy()).all():
        return facts | {"code": "lets samples through that are NaN or infinite"}
    if len(batch[BATCH_FACTS].bad) != sum(row.inputs is None for row in rows):
        return facts | {"code": "drops a row without counting it"}
    return facts | {"code": "reported" if said else "decoded", "err": "; ".join(said)}


def warm_up() -> None:
    """Import what takes seconds, so that it isn't the first file's time."""
    import soxr  # noqa: F401
    import torch  # noqa: F401

    _extractor()


@lru_cache
def _extractor() -> Any:
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
