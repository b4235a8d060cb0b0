"""espeak-ng through ctypes: text and a voice in, a 16 kHz wav file out.

The engine carries state from one utterance to the next, so each fixed share of the lines is spoken, in
order, by a process of its own: the audio is the same whatever the number of cores.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_RATE_HZ = 16_000
SHARES = 16
SILENCE_SECONDS = 0.06
PEAK = 0.5

_RATE, _PITCH = 1, 3  # espeak_PARAMETER in speak_lib.h
_SYNCHRONOUS, _UTF8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8


@dataclass(frozen=True)
class Voice:
    """A speaker: an accent of espeak-ng and a variant file that changes its vocal tract."""

    name: str
    accent: str
    formants_percent: tuple[int, ...]
    pitch_hz: tuple[int, int]
    flutter: int
    voicing: int

    def variant(self) -> str:
        """Return the text of the variant file (espeak-ng docs/voices.md)."""
        formants = "".join(f"formant {i} {f} 100 100\n" for i, f in enumerate(self.formants_percent))
        low, high = self.pitch_hz
        return f"language variant\nname {self.name}\npitch {low} {high}\nflutter {self.flutter}\nvoicing {self.voicing}\n{formants}"


@dataclass(frozen=True)
class Line:
    """One utterance to speak: `audio` is its file relative to the corpus' folder."""

    id: str
    audio: str
    text: str
    voice: Voice
    words_per_minute: int
    pitch: int


def speak(lines: Sequence[Line], folder: Path, *, progress: str = "") -> float:
    """Write each line's audio under `folder` and return the seconds made.

    Raises RuntimeError when espeak-ng refuses a voice or warns on stderr (past 350 voices it speaks
    another accent with no more than a warning).
    """
    from tqdm import tqdm

    for parent in {(folder / line.audio).parent for line in lines}:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data:
        _write_voices({line.voice for line in lines}, Path(data))
        jobs = [(lines[i * len(lines) // SHARES : (i + 1) * len(lines) // SHARES], folder, data) for i in range(SHARES)]
        processes = min(SHARES, os.cpu_count() or 1)
        with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
            done = pool.imap_unordered(_speak_share, [job for job in jobs if job[0]])
            return sum(tqdm(done, desc=progress, total=len([j for j in jobs if j[0]]), disable=not progress, leave=False))


def _write_voices(voices: set[Voice], data: Path) -> None:
    """Copy the English half of espeak-ng's data and add our variants: the installed package stays as it is."""
    import espeakng_loader

    installed = Path(espeakng_loader.get_data_path())
    for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict"):
        shutil.copyfile(installed / name, data / name)
    shutil.copytree(installed / "lang" / "gmw", data / "lang" / "gmw")
    (data / "voices" / "!v").mkdir(parents=True)
    for voice in voices:
        (data / "voices" / "!v" / voice.name).write_text(voice.variant(), encoding="ascii")


def _speak_share(job: tuple[Sequence[Line], Path, str]) -> float:
    """Speak one share in a fresh process; return its seconds."""
    lines, folder, data = job
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        engine = _Engine(data)
        seconds = sum(_write(engine.say(line), engine.sample_rate_hz, folder / line.audio) for line in lines)
        said.seek(0)
        warning = said.read().decode(errors="replace").strip()
    if warning:
        raise RuntimeError(f"espeak-ng warned: {warning[:500]}")
    return seconds


class _Engine:
    """One initialised espeak-ng; `say` returns int16 samples."""

    def __init__(self, data: str) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self.sample_rate_hz: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), 0)
        if self.sample_rate_hz <= 0:
            raise RuntimeError(f"espeak-ng did not start with the voices in {data}")
        self._chunks: list[bytes] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], num_samples: int, _events: int) -> int:
        if samples and num_samples > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    def say(self, line: Line) -> bytes:
        self._chunks.clear()
        voice = f"{line.voice.accent}+{line.voice.name}"
        text = line.text.encode()
        failed = (
            self._library.espeak_SetVoiceByName(voice.encode())
            or self._library.espeak_SetParameter(_RATE, line.words_per_minute, 0)
            or self._library.espeak_SetParameter(_PITCH, line.pitch, 0)
            or self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
            or self._library.espeak_Synchronize()
        )
        if failed:
            raise RuntimeError(f"espeak-ng error {failed} for voice {voice} saying {line.text!r}")
        return b"".join(self._chunks)


def _write(samples: bytes, sample_rate_hz: int, path: Path) -> float:
    """Resample, trim the silence to 60 ms a side, scale the peak, write 16-bit wav; return its seconds."""
    import numpy as np
    import soundfile
    import soxr

    wave = soxr.resample(np.frombuffer(samples, np.int16).astype(np.float32) / 2**15, sample_rate_hz, SAMPLE_RATE_HZ)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    margin = round(SILENCE_SECONDS * SAMPLE_RATE_HZ)
    wave = np.pad(wave[loud[0] : loud[-1] + 1], margin)
    soundfile.write(path, wave * (PEAK / np.abs(wave).max()), SAMPLE_RATE_HZ, subtype="PCM_16")
    return len(wave) / SAMPLE_RATE_HZ
