"""Small corpora in shards: Parquet files and tar archives of short sounds, each with its own length."""

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

WORDS = "one two three four five six seven eight nine ten".split()


def seconds_of(number: int) -> float:
    """How long utterance `number` is."""
    return 0.2 + 0.05 * (number % 9)


def text_of(number: int) -> str:
    return " ".join(WORDS[int(digit)] for digit in str(number))


@lru_cache
def encoded(number: int, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(number).normal(0, 0.1, round(16000 * seconds_of(number))).astype(np.float32)
    soundfile.write(file, noise, 16000, format=format)
    return file.getvalue()


def parquet(folder: Path, numbers: range, *, split: str = "train", shards: int = 2, group: int = 4, audio=encoded, **columns) -> Path:
    """Write utterances into `shards` files of row groups of `group`, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in enumerate(np.array_split(np.array(numbers), shards)):
        rows = [int(n) for n in part]
        table = {
            "id": [f"u{n}" for n in rows],
            "audio": pa.array([{"bytes": audio(n), "path": None} for n in rows], pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "text": [text_of(n) for n in rows],
        }
        made = {name: [make(n) for n in rows] for name, make in columns.items()}
        pq.write_table(pa.table(table | made), folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet", row_group_size=group)
    return folder


def tar(folder: Path, numbers: range, *, split: str = "train", shards: int = 2, audio=encoded, transcript=None) -> Path:
    """Write utterances into `shards` archives; `transcript` gives the members beside the audio, by ending."""
    folder.mkdir(parents=True, exist_ok=True)
    transcript = transcript or (lambda n: {"txt": text_of(n).encode()})
    for shard, part in enumerate(np.array_split(np.array(numbers), shards)):
        with tarfile.open(folder / f"{split}-{shard:06d}.tar", "w") as archive:
            for n in map(int, part):
                for ending, content in {"wav": audio(n), **transcript(n)}.items():
                    member = tarfile.TarInfo(f"part{n // 10}/u{n}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def in_json(n: int) -> dict[str, bytes]:
    return {"json": json.dumps({"sentence": text_of(n), "speaker": f"s{n % 3}"}).encode()}
