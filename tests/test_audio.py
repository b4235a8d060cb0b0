import struct

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


def test_a_flac_cut_short_is_found_when_it_is_decoded(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seconds = audio.seconds_of(path)  # the header still promises three
    assert seconds == 3.0
    with pytest.raises(DataError, match=r"cut\.flac (is cut short|can't be read as audio)"):
        audio.read(path, RATE, seconds=seconds)


def test_a_part_of_a_file(tmp_path):
    path = tmp_path / "ramp.wav"
    ramp = np.arange(RATE) / RATE
    soundfile.write(path, ramp, RATE, subtype="FLOAT")
    part = audio.read(path, RATE, start_seconds=0.25, seconds=0.5)
    np.testing.assert_allclose(part, ramp[4000:12000], atol=1e-6)
    assert len(audio.read(path, RATE, start_seconds=0.75)) == 4000


def test_a_stereo_mp3_of_44_1_khz(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, np.stack([tone(2, 44100), tone(2, 44100)], axis=1), 44100)
    samples = audio.read(path, RATE, seconds=audio.seconds_of(path))
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(2 * RATE, abs=1600)
    spectrum = np.abs(np.fft.rfft(samples[4000:20000]))
    assert spectrum.argmax() == 440


def test_zero_length_audio_has_no_seconds(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    assert audio.seconds_of(tmp_path / "none.wav") == 0.0
    assert audio.read(tmp_path / "none.wav", RATE).shape == (0,)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "w64", "rf64"])
def test_a_file_shorter_than_its_header_promises_is_cut_short(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, tone(4), RATE, format=suffix.upper())
    assert audio.seconds_of(path) == 4.0
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut short: (1\.99|2\.00) s of (3\.9\d|4\.0\d) s are there"):
        audio.seconds_of(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF024])
def test_a_wav_written_to_a_pipe_promises_nothing(tmp_path, size):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(1), RATE)
    content = bytearray(path.read_bytes())
    data = content.index(b"data")
    content[4:8] = content[data + 4 : data + 8] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert audio.seconds_of(path) == pytest.approx(1.0, abs=0.001)


def spoilt(path, at: int, form: str, value: int):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("hz", [1, 999, 10**9, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_a_damaged_header(tmp_path, hz):
    soundfile.write(tmp_path / "a.wav", tone(0.1), RATE)
    path = spoilt(tmp_path / "a.wav", 24, "<I", hz)
    for read in (audio.seconds_of, lambda path: audio.read(path, RATE)):
        with pytest.raises(DataError, match=rf"a\.wav can't be read as audio \(its header says {hz} Hz\)"):
            read(path)


def test_a_header_that_promises_days_in_a_few_bytes_is_damaged(tmp_path):
    """Also a promise that is believed asks for no memory before there are samples."""
    soundfile.write(tmp_path / "a.flac", tone(0.5), RATE)
    path = spoilt(tmp_path / "a.flac", 22, ">I", 2**31 - 1)  # the low 32 bits of its number of samples
    for read in (audio.seconds_of, lambda path: audio.read(path, RATE)):
        with pytest.raises(DataError, match=r"a\.flac can't be read as audio \(its header says \d+ s in \d+ bytes\)"):
            read(path)


def test_long_audio_is_decoded_in_blocks(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1), -tone(1)], axis=1), RATE)
    whole = audio.read(path, RATE)
    part = audio.read(path, RATE, start_seconds=0.5, seconds=0.25)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 2 * 1000)
    assert np.array_equal(audio.read(path, RATE), whole)
    assert np.array_equal(audio.read(path, RATE, start_seconds=0.5, seconds=0.25), part)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 2 * 4000)  # as many blocks as fit
    assert np.array_equal(audio.read(path, RATE), whole)


def test_a_format_that_can_t_be_wound_is_decoded_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1), RATE, subtype="GSM610")
    assert len(audio.read(tmp_path / "a.wav", RATE)) == pytest.approx(RATE, abs=320)


def test_samples_that_are_no_sound_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, 1e37, -0.1]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav holds samples of more than 2\*\*31"):
        audio.read(tmp_path / "a.wav", RATE)
    soundfile.write(tmp_path / "b.wav", np.array([0.0, 32767.0, -5.0]), RATE, subtype="FLOAT")  # integers, never scaled
    assert audio.read(tmp_path / "b.wav", RATE).max() == 32767
