"""Audio files: what a header says, and decoded samples.

In: a path to anything libsndfile reads. Out: seconds, or mono float32 samples at the rate asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from asr.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def seconds_of(path: Path) -> float:
    """Return the duration in seconds from the header alone; raise DataError that names the file."""
    import soundfile

    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error


def read(path: Path, sample_rate_hz: int) -> NDArray[np.float32]:
    """Return the samples of a file as mono float32 in [-1, 1], shape [samples], at `sample_rate_hz`.

    Channels are averaged; other rates are resampled by soxr. Raises DataError that names the file.
    """
    import numpy as np
    import soundfile
    import soxr

    try:
        samples, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, rate_hz, sample_rate_hz)
    if not np.isfinite(mono).all():
        raise DataError(f"{path} holds samples that are NaN or infinite; repair it or leave it out.")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _unreadable(path: Path, error: Exception) -> DataError:
    what = "is not there" if not path.exists() else f"can't be read as audio ({str(error).rpartition(': ')[2].strip()})"
    return DataError(f"{path} {what}; repair it or leave it out.")
