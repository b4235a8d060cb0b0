import numpy as np
import pytest
import soundfile

from asr import audio
from asr.errors import DataError

RATE = 16000


def tone(seconds: float, rate: int = RATE, hz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_of_libsndfile(tmp_path, suffix):
    path = tmp_path / f"a b.{suffix}"
    soundfile.write(path, tone(1.0), RATE)
    assert audio.seconds_of(path) == pytest.approx(1.0, abs=0.1)
    samples = audio.read(path, RATE)
    assert samples.dtype == np.float32
    assert np.abs(samples[4000:12000]).max() == pytest.approx(0.5, abs=0.05)


def test_other_rates_and_channels_become_mono_at_the_rate_asked_for(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1, 44100), np.zeros(44100)], axis=1), 44100)
    samples = audio.read(path, RATE)
    assert samples.shape == (RATE,)
    expected = 0.5 * tone(1)
    assert np.abs(samples - expected)[500:-500].max() < 0.01


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"RIFF\x24\x00\x00\x00WAVE"])
@pytest.mark.parametrize("read", [audio.seconds_of, lambda path: audio.read(path, RATE)])
def test_a_file_that_is_no_audio_is_named(tmp_path, content, read):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.wav can't be read as audio"):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.wav is not there"):
        audio.read(tmp_path / "gone.wav", RATE)


def test_nan_samples_are_refused(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.1]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav holds samples that are NaN"):
        audio.read(path, RATE)
