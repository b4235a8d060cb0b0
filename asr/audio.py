"""Audio files: what a header says, and decoded samples.

In: anything libsndfile reads, in a file of its own, in a cell of an Arrow file or in memory, whole or a part of it.
Out: seconds, or mono float32 samples at the rate asked for.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import arrow
from asr.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN_LENGTH = 0x7FFF0000
"""Sizes from here on are written by programs that don't know them yet (sox and ffmpeg into a pipe)."""
TOLERANCE_SECONDS = 0.1
"""How far decoded audio may be from what its header says; some encoders pad or round to their own frames."""
RATES_HZ = (1000, 1_000_000)
"""Outside of these a header is damaged, and resampling by it would make much of little."""
SECONDS_PER_BYTE = 1.0
"""No codec packs more: flac's longest block of silence, 65535 samples, takes 12 bytes (RFC 9639)."""
LOUDEST = 2.0**31
"""Floating-point samples beyond integers that were never scaled are no sound; their squares soon have no number."""
BLOCK_SAMPLES = 1 << 24
"""Of all channels, decoded at once: the length that a header says is memory asked for before a sample is read."""
STREAMED_SECONDS = 30
"""Of a file that is read block after block, at once."""


def seconds_of(path: Path, *, column: str = "", row: int | None = None, content: bytes | None = None) -> float:
    """Return the duration in seconds from the header alone; raise DataError that names the file.

    `content` is the file itself, where it has been read already: `path` and `row` then only say whence.
    Also for a file shorter than its header promises. Formats without such a promise (mp3, ogg) can't tell.
    """
    import soundfile

    try:
        stored = _stored(path, column, row, content)
        with soundfile.SoundFile(stored) as file:
            _check_header(file, stored, _where(path, row))
            seconds, lost = float(file.frames / file.samplerate), _share_lost(file.extra_info)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, row, error, is_there=content is not None) from error
    if lost * seconds > TOLERANCE_SECONDS:
        raise DataError(
            f"{_where(path, row)} is cut short: {seconds:.2f} s of {seconds * (1 + lost):.2f} s are there; repair it or leave it out."
        )
    return seconds


def _check_header(file: Any, stored: bytes | io.BytesIO, where: str) -> None:
    """Raise DataError for a header that can't be right: a rate that no sound has, or more seconds than its bytes can hold."""
    if not RATES_HZ[0] <= file.samplerate <= RATES_HZ[1]:
        raise DataError(f"{where} can't be read as audio (its header says {file.samplerate} Hz); repair it or leave it out.")
    seconds = file.frames / file.samplerate
    if seconds > 60:  # rarely: looking takes a system call
        size = len(stored.getbuffer()) if isinstance(stored, io.BytesIO) else Path(os.fsdecode(stored)).stat().st_size
        if seconds > size * SECONDS_PER_BYTE:
            raise DataError(f"{where} can't be read as audio (its header says {seconds:.0f} s in {size} bytes); repair it or leave it out.")


def _share_lost(parser_log: str) -> float:
    """Return how much more audio a header promises than the file holds, as a share of what it holds.

    libsndfile takes what is there, and says so in its log only: "data : 128000 (should be 63978)". Recorders that write
    to a pipe leave a huge number, which promises nothing.
    """
    found = re.search(r": (\d+) \(should be (\d+)\)", parser_log)
    if not found:
        return 0.0
    promised, there = map(int, found.groups())
    return promised / there - 1 if there and promised < UNKNOWN_LENGTH else 0.0


def read(
    path: Path,
    sample_rate_hz: int,
    *,
    column: str = "",
    row: int | None = None,
    start_seconds: float | None = None,
    seconds: float | None = None,
    content: bytes | None = None,
) -> NDArray[np.float32]:
    """Return samples as mono float32 in [-1, 1], shape [samples], at `sample_rate_hz`.

    Channels are averaged; other rates are resampled by soxr. `start_seconds` takes the part that begins there. `content` is the
    file itself, where it has been read already.
    `seconds` is what the header promised: raises DataError that names the file when much else is decoded
    (a file cut short), for samples that are NaN or infinite, and for what can't be decoded.
    """
    import numpy as np
    import soxr

    with _opened(path, column, row, start_seconds, seconds, content) as (file, count):
        rate_hz, finite, samples = file.samplerate, _is_finite(file), _decoded(file, count)
    if seconds is not None and abs(len(samples) / rate_hz - seconds) > TOLERANCE_SECONDS:
        raise DataError(
            f"{_where(path, row)} is cut short: {len(samples) / rate_hz:.2f} s of {seconds:.2f} s can be decoded; repair or leave it out."
        )
    mono = _mono(samples)
    if rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, rate_hz, sample_rate_hz)
    if not finite:
        _check_sound(mono, _where(path, row))
    return np.ascontiguousarray(mono, dtype=np.float32)


def blocks(
    path: Path,
    sample_rate_hz: int,
    *,
    column: str = "",
    row: int | None = None,
    start_seconds: float | None = None,
    seconds: float | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield what `read` returns in blocks, so that a recording of any length takes the memory of one; raises as `read` does.

    A file of its own that ends before what its header promises is cut short: that is found out after its last block.
    """
    import numpy as np
    import soxr

    with _opened(path, column, row, start_seconds, seconds, None) as (file, left):
        rate_hz, finite = file.samplerate, _is_finite(file)
        stream = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32") if rate_hz != sample_rate_hz else None
        while left > 0:
            wanted = min(STREAMED_SECONDS * rate_hz, left)
            mono = _mono(file.read(wanted, dtype="float32", always_2d=True))
            left = left - len(mono) if len(mono) == wanted else 0
            lost = wanted - len(mono)
            if not finite:
                _check_sound(mono, _where(path, row))
            yield np.ascontiguousarray(stream.resample_chunk(mono, last=left == 0) if stream else mono, dtype=np.float32)
            if lost > TOLERANCE_SECONDS * rate_hz:
                raise DataError(f"{_where(path, row)} is cut short: its last seconds can't be decoded; repair it or leave it out.")


@contextmanager
def _opened(
    path: Path, column: str, row: int | None, start_seconds: float | None, seconds: float | None, content: bytes | None
) -> Iterator[tuple[Any, int]]:
    """Yield a file where its part begins, and how many frames the part has; what fails inside is a DataError that names the file."""
    import soundfile

    try:
        stored = _stored(path, column, row, content)
        with soundfile.SoundFile(stored) as file:
            _check_header(file, stored, _where(path, row))
            count = file.frames
            if start_seconds is not None:
                start = min(round(start_seconds * file.samplerate), file.frames)
                file.seek(start)
                count = min(count - start, count if seconds is None else round(seconds * file.samplerate))
            yield file, count
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, row, error, is_there=content is not None) from error


def _is_finite(file: Any) -> bool:
    """Whether samples can't be otherwise: integers, flac's too."""
    return str(file.subtype).startswith("PCM")


def _mono(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def _check_sound(mono: NDArray[np.float32], where: str) -> None:
    """Raise DataError for floating-point samples that are no sound."""
    import numpy as np

    if not np.isfinite(mono).all():
        raise DataError(f"{where} holds samples that are NaN or infinite; repair it or leave it out.")
    if len(mono) and max(mono.max(), -mono.min()) > LOUDEST:
        raise DataError(f"{where} holds samples of more than 2**31, which are no sound; repair it or leave it out.")


def _decoded(file: Any, count: int) -> NDArray[np.float32]:
    """Return up to `count` frames from where a file stands, float32 [frames, channels]; fewer where it ends before."""
    import numpy as np

    block = max(1, BLOCK_SAMPLES // file.channels)
    parts: list[NDArray[np.float32]] = []
    while count > 0 or not parts:
        parts.append(file.read(min(block, max(count, 0)), dtype="float32", always_2d=True))
        count = count - block if len(parts[-1]) == block else 0
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _stored(path: Path, column: str, row: int | None, content: bytes | None) -> bytes | io.BytesIO:
    if content is not None:
        return io.BytesIO(content)
    return os.fsencode(path) if row is None else io.BytesIO(arrow.audio_bytes(path, column, row))


def _where(path: Path, row: int | None) -> str:
    return str(path) if row is None else f"{path}, row {row},"


def _unreadable(path: Path, row: int | None, error: Exception, *, is_there: bool = False) -> DataError:
    reason = str(error).rpartition(": ")[2].strip()
    what = f"can't be read as audio ({reason})" if is_there or path.exists() else "is not there"
    return DataError(f"{_where(path, row)} {what}; repair it or leave it out.")
