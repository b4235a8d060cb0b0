"""Waveform augmentation for training: speed, reverberation, noise and gain, off by default.

In: mono float32 samples, and who asks: seed, epoch and utterance id, which alone decide what is drawn.
Out: mono float32 samples. Knows no torch.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from asr import audio
from asr.config import bounded
from asr.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
MOST_DB = 100.0
"""Decibels beyond this, up or down, are a slip of the pen: float32 has 150 dB between its rounding and full scale."""
KEPT_SECONDS = 30.0
"""Of longer noise a piece is decoded, each time; up to here whole files are, and 32 kept in a process (2 MB each at 16 kHz)."""


@dataclass(kw_only=True)
class Augmentation:
    """What is done to the audio of training utterances, in this order: speed, reverberation, noise, gain.

    Each kind throws dice of its own, made from (seed, epoch, utterance id): the same whichever worker or machine
    loads the utterance, and unmoved by the other kinds.
    """

    speed_factors: list[float] = field(default_factory=list)
    """Factors above 0.5 and below 2, such as [0.9, 1.0, 1.1] (Ko et al. 2015, "Audio augmentation for speech recognition"): one
    is drawn for each utterance and epoch. 1.1 is a tenth faster and higher, by resampling, as sox's speed. Empty: off."""
    noise_folder: str | None = None
    """Folder of recordings (wav, flac, ogg, opus, mp3, at any depth; links to folders aren't followed), one of which is added:
    longer ones are cropped at a random place, shorter ones repeated. null: off."""
    noise_probability: float = bounded(1.0, at_least=0, at_most=1)
    """Share of utterances that get noise."""
    noise_snr_db: list[float] = field(default_factory=lambda: [0.0, 15.0])
    """[min, max] of the signal-to-noise ratio in dB over the whole utterance, drawn uniformly; lower is noisier. The default is
    that of SpeechBrain's recipes; icefall's take [10, 20] for half of the utterances."""
    reverberation_folder: str | None = None
    """Folder of room impulse responses, channels averaged, one of which the utterance is convolved with: it stays as long, as
    loud and as early as it was, as with Kaldi's wav-reverberate --shift-output --normalize-output. null: off."""
    reverberation_probability: float = bounded(1.0, at_least=0, at_most=1)
    """Share of utterances that get reverberation."""
    gain_db: list[float] = field(default_factory=list)
    """[min, max] of the gain in dB, drawn uniformly; beyond [-1, 1] nothing is clipped. Changes nothing for feature extractors
    that normalise each utterance (do_normalize). Empty: off."""

    def __post_init__(self) -> None:
        for factor in self.speed_factors:
            if not 0.5 < factor < 2:
                raise ConfigError(f"{factor} is out of range; each must be above 0.5 and below 2.", key="speed_factors")
        _check_pair("noise_snr_db", self.noise_snr_db)
        if self.gain_db:
            _check_pair("gain_db", self.gain_db)

    @property
    def active(self) -> bool:
        """Whether anything is on."""
        return bool(self.speed_factors or self.noise_folder or self.reverberation_folder or self.gain_db)

    @property
    def longest_stretch(self) -> float:
        """What an utterance's length is multiplied by at most; below 1 when every factor is above."""
        return 1 / min(self.speed_factors, default=1.0)

    @property
    def shortest_stretch(self) -> float:
        """What an utterance's length is multiplied by at least: its labels must fit into the frames left then."""
        return 1 / max(self.speed_factors, default=1.0)

    def check_reachable(self) -> None:
        """Raise ConfigError for a folder that isn't there or holds no audio; stops at the first file it finds."""
        for key in ("noise_folder", "reverberation_folder"):
            folder = getattr(self, key)
            if folder and not Path(folder).expanduser().is_dir():
                raise ConfigError(f"there is no folder {folder!r}.", key=key)
            if folder and next(_audio_under(folder), None) is None:
                raise _without_audio(folder, key)

    def check_files(self) -> None:
        """Read every recording's header: a broken one is named before training, not hours into it. Raises DataError."""
        for key in ("noise_folder", "reverberation_folder"):
            if getattr(self, key):
                for path in _audio_files(getattr(self, key), key):
                    audio.seconds_of(path)

    def apply(self, waveform: NDArray[np.float32], sample_rate_hz: int, *, seed: int, epoch: int, utterance_id: str) -> NDArray[np.float32]:
        """Return the augmented waveform [samples], longer or shorter by the speed drawn; the same object when nothing is done.

        Values may leave [-1, 1]: feature extractors take any float32, and clipping would distort. Silence stays silent.
        Raises DataError for a noise or impulse response that can't be decoded.
        """
        who = (seed, epoch, utterance_id)
        if self.speed_factors:
            waveform = change_speed(waveform, _one_of(self.speed_factors, _dice("speed", who)[0]))
        if self.reverberation_folder:
            whether, which = _dice("reverberation", who)[:2]
            if whether < self.reverberation_probability:
                path = _one_of(_audio_files(self.reverberation_folder, "reverberation_folder"), which)
                waveform = reverberate(waveform, _decoded(path, sample_rate_hz))
        if self.noise_folder:
            whether, which, where, level = _dice("noise", who)
            if whether < self.noise_probability:
                path = _one_of(_audio_files(self.noise_folder, "noise_folder"), which)
                noise = _piece(path, sample_rate_hz, len(waveform), where)
                waveform = add_noise(waveform, noise, _between(self.noise_snr_db, level))
        if self.gain_db:
            waveform = change_gain(waveform, _between(self.gain_db, _dice("gain", who)[0]))
        return waveform


def change_speed(waveform: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Return [samples / factor]: tempo and pitch times `factor`, by resampling."""
    import soxr

    resampled: NDArray[np.float32] = waveform if factor == 1 else soxr.resample(waveform, factor, 1.0)
    return resampled


def reverberate(waveform: NDArray[np.float32], impulse_response: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the convolution [samples], aligned to the response's peak (the direct path) and with the energy of the waveform."""
    import numpy as np

    if not waveform.any() or not impulse_response.any():
        return waveform
    peak = int(np.abs(impulse_response).argmax())
    size = 1 << (len(waveform) + len(impulse_response) - 2).bit_length()  # a power of two that holds the whole convolution
    spectrum = np.fft.rfft(waveform.astype(np.float64), size) * np.fft.rfft(impulse_response.astype(np.float64), size)
    wet = np.fft.irfft(spectrum, size)[peak : peak + len(waveform)]
    power = _power(wet)  # of what lies within the length; its sum can be zero, if only on paper
    return (wet * math.sqrt(_power(waveform) / power)).astype(np.float32) if power else waveform


def add_noise(waveform: NDArray[np.float32], noise: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """Return waveform plus noise [samples], the noise scaled to the ratio of powers; nothing is added to or from silence."""
    import numpy as np

    if not waveform.any() or not noise.any():
        return waveform
    scale = math.sqrt(_power(waveform) / _power(noise)) * 10 ** (-snr_db / 20)
    return (waveform + noise.astype(np.float64) * scale).astype(np.float32)


def change_gain(waveform: NDArray[np.float32], gain_db: float) -> NDArray[np.float32]:
    """Return the waveform [samples] times 10^(gain_db / 20)."""
    import numpy as np

    louder: NDArray[np.float32] = waveform * np.float32(10 ** (gain_db / 20))
    return louder


def _power(samples: NDArray[np.floating]) -> float:
    import numpy as np

    return float(np.mean(np.square(samples, dtype=np.float64)))


def _check_pair(key: str, pair: Sequence[float]) -> None:
    if len(pair) != 2:
        raise ConfigError(f"{list(pair)} must be two numbers, [min, max].", key=key)
    for value in pair:
        if not -MOST_DB <= value <= MOST_DB:  # NaN isn't either
            raise ConfigError(f"{value} dB is out of range; it must be at least {-MOST_DB:g} and at most {MOST_DB:g}.", key=key)
    if pair[0] > pair[1]:
        raise ConfigError(f"{list(pair)} is upside down; put the smaller number first.", key=key)


def _dice(kind: str, who: tuple[int, int, str]) -> tuple[float, float, float, float]:
    """Return four numbers uniform in [0, 1); all are thrown whether used or not, so that no setting moves another's."""
    import numpy as np

    text = "\0".join((kind, *map(str, who)))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    # PCG64 by name: numpy may change what default_rng stands for
    first, second, third, fourth = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))).random(4).tolist()
    return first, second, third, fourth


def _one_of(choices: Sequence[_T], die: float) -> _T:
    return choices[int(die * len(choices))]


def _between(pair: Sequence[float], die: float) -> float:
    return pair[0] + die * (pair[1] - pair[0])


def _audio_under(folder: str) -> Iterator[Path]:
    for parent, _, names in os.walk(Path(folder).expanduser()):
        for name in names:
            # names with a leading dot are not recordings: macOS leaves ._name.wav beside name.wav
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


@lru_cache
def _audio_files(folder: str, key: str) -> tuple[Path, ...]:
    """Return the recordings in an order that doesn't depend on the machine, listed once a process."""
    root = Path(folder).expanduser()
    files = tuple(sorted(_audio_under(folder), key=lambda path: path.relative_to(root).as_posix()))
    if not files:
        raise _without_audio(folder, key)
    return files


def _without_audio(folder: str, key: str) -> ConfigError:
    return ConfigError(f"{folder!r} holds no audio file ({', '.join(SUFFIXES)}), at any depth.", key=key)


@lru_cache(maxsize=32)
def _decoded(path: Path, sample_rate_hz: int) -> NDArray[np.float32]:
    samples = audio.read(path, sample_rate_hz)
    samples.flags.writeable = False  # it is handed out again
    return samples


def _piece(path: Path, sample_rate_hz: int, count: int, die: float) -> NDArray[np.float32]:
    """Return `count` samples of a recording from a random place, or of its repetition when it is shorter."""
    import numpy as np

    seconds, wanted = audio.seconds_of(path), count / sample_rate_hz + audio.TOLERANCE_SECONDS
    if seconds > max(wanted, KEPT_SECONDS):
        samples = audio.read(path, sample_rate_hz, start_seconds=die * (seconds - wanted), seconds=wanted)
        return np.resize(samples, count)
    samples = _decoded(path, sample_rate_hz)
    if len(samples) >= count:
        start = int(die * (len(samples) - count + 1))
        return samples[start : start + count]
    return np.resize(np.roll(samples, -int(die * len(samples))), count)  # resize repeats; of nothing it makes zeros
