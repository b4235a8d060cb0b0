import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from asr import augment
from asr.augment import Augmentation
from asr.config import check_ranges
from asr.errors import ConfigError, DataError

RATE = 16000
OF = {"seed": 7, "epoch": 1, "utterance_id": "speaker-1"}


def hiss(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def tone(seconds: float, hz: float = 440) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(np.mean(signal.astype(float) ** 2) / np.mean(other.astype(float) ** 2))


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **({"subtype": "FLOAT"} if path.suffix == ".wav" else {}))
    return path


@pytest.fixture
def noises(tmp_path: Path) -> str:
    """Two recordings: one shorter than a second, one longer."""
    write(tmp_path / "noises" / "long.wav", hiss(3, seed=1))
    write(tmp_path / "noises" / "deeper" / "short.FLAC", np.clip(hiss(0.3, seed=2), -0.9, 0.9))
    return str(tmp_path / "noises")


@pytest.fixture
def rooms(tmp_path: Path) -> str:
    """Two impulse responses, the direct path a few milliseconds from their start."""
    for seed in (3, 4):
        tail = hiss(0.4, seed=seed) * np.exp(-np.arange(round(0.4 * RATE)) / 800)
        tail[50 * seed] = 1.0
        write(tmp_path / "rooms" / f"{seed}.wav", tail)
    return str(tmp_path / "rooms")


@pytest.fixture
def everything(noises: str, rooms: str) -> Augmentation:
    return Augmentation(
        speed_factors=[0.9, 1.0, 1.1], noise_folder=noises, reverberation_folder=rooms, reverberation_probability=0.5, gain_db=[-6, 6]
    )


# -- off by default, and what the schema says


def test_off_by_default():
    waveform = hiss(0.1)
    augmentation = Augmentation()
    assert not augmentation.active
    assert augmentation.longest_stretch == 1
    assert augmentation.apply(waveform, RATE, **OF) is waveform
    augmentation.check_reachable()
    check_ranges(augmentation)


@pytest.mark.parametrize(
    "on",
    [{"speed_factors": [0.9]}, {"noise_folder": "a"}, {"reverberation_folder": "a"}, {"gain_db": [0, 1]}],
    ids=lambda on: next(iter(on)),
)
def test_each_kind_makes_it_active(on):
    assert Augmentation(**on).active


def test_the_schema_takes_numbers_and_refuses_words():
    from omegaconf import OmegaConf
    from omegaconf.errors import ValidationError

    from asr.config_files import schema_of

    schema = schema_of("asr.augment.Augmentation")
    assert OmegaConf.merge(schema, {"noise_snr_db": [5, 20]}).noise_snr_db == [5.0, 20.0]
    with pytest.raises(ValidationError):
        OmegaConf.merge(schema, {"speed_factors": ["fast"]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speed_factors", [1.0, 0.5]),
        ("speed_factors", [2.0]),
        ("speed_factors", [math.nan]),
        ("speed_factors", [-1.0]),
        ("noise_snr_db", []),
        ("noise_snr_db", [5.0]),
        ("noise_snr_db", [0.0, 5.0, 10.0]),
        ("noise_snr_db", [15.0, 0.0]),
        ("noise_snr_db", [0.0, math.inf]),
        ("noise_snr_db", [math.nan, 1.0]),
        ("gain_db", [1.0]),
        ("gain_db", [6.0, -6.0]),
        ("gain_db", [-math.inf, 0.0]),
        ("gain_db", [0.0, 1000.0]),
        ("noise_probability", 1.1),
        ("noise_probability", -0.1),
        ("reverberation_probability", 2.0),
        ("reverberation_probability", math.nan),
    ],
)
def test_wrong_values_name_their_key(key, value):
    with pytest.raises(ConfigError) as caught:
        check_ranges(Augmentation(**{key: value}))
    assert caught.value.key == key


@pytest.mark.parametrize(("factors", "longest"), [([0.9, 1.0, 1.1], 1 / 0.9), ([1.25], 0.8), ([], 1.0)])
def test_longest_stretch(factors, longest):
    augmentation = Augmentation(speed_factors=factors)
    assert augmentation.longest_stretch == pytest.approx(longest)
    assert augmentation.shortest_stretch == pytest.approx(1 / max(factors, default=1))


# -- folders


@pytest.mark.parametrize("key", ["noise_folder", "reverberation_folder"])
def test_a_folder_that_is_not_there_or_has_no_audio_names_its_key(tmp_path, key):
    with pytest.raises(ConfigError, match="there is no folder") as caught:
        Augmentation(**{key: str(tmp_path / "gone")}).check_reachable()
    assert caught.value.key == key
    (tmp_path / "deeper.wav").mkdir()
    for name in ("notes.txt", "._mac.wav", "wav"):
        (tmp_path / name).write_text("no audio")
    with pytest.raises(ConfigError, match="holds no audio file") as caught:
        Augmentation(**{key: str(tmp_path)}).check_reachable()
    assert caught.value.key == key
    with pytest.raises(ConfigError, match="holds no audio file"):
        Augmentation(**{key: str(tmp_path)}).apply(hiss(0.1), RATE, **OF)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "WAV"])
def test_every_suffix_is_found_and_decoded(tmp_path, suffix):
    path = tmp_path / "deep" / "deeper" / f"a b.{suffix}"
    path.parent.mkdir(parents=True)
    soundfile.write(path, hiss(0.5), RATE, **({"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}))
    augmentation = Augmentation(noise_folder=str(tmp_path), noise_snr_db=[10, 10])
    augmentation.check_reachable()
    speech = tone(1)
    assert decibels(speech, augmentation.apply(speech, RATE, **OF) - speech) == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize("key", ["noise_folder", "reverberation_folder"])
def test_a_recording_that_can_not_be_decoded_is_named(tmp_path, key):
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    augmentation = Augmentation(**{key: str(tmp_path)})
    augmentation.check_reachable()
    with pytest.raises(DataError, match=r"broken\.wav can't be read as audio"):
        augmentation.apply(hiss(0.1), RATE, **OF)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "noises" / "a.wav", hiss(1))
    augmentation = Augmentation(noise_folder="~/noises")
    augmentation.check_reachable()
    assert not np.array_equal(augmentation.apply(tone(1), RATE, **OF), tone(1))


def test_files_have_one_order_wherever_the_folder_lies(tmp_path, monkeypatch):
    names = ["b/a.wav", "b.wav", "B.wav", "a/z.flac", "a-1.wav", "é.wav"]
    listed = []
    for root, order in (("one", names), ("two/three", names[::-1])):
        for name in order:
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).touch()
        listed.append([p.relative_to(tmp_path / root).as_posix() for p in augment._audio_files(str(tmp_path / root), "noise_folder")])
    assert listed[0] == listed[1] == ["B.wav", "a-1.wav", "a/z.flac", "b.wav", "b/a.wav", "é.wav"]


# -- each kind against what numpy, scipy and arithmetic say


@pytest.mark.parametrize(("factor", "hz"), [(1.1, 484), (0.9, 396), (1.5, 660)])
def test_speed_moves_a_tone_and_the_length(factor, hz):
    out = Augmentation(speed_factors=[factor]).apply(tone(2), RATE, **OF)
    assert out.dtype == np.float32
    assert len(out) == pytest.approx(2 * RATE / factor, abs=1)
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
    assert np.fft.rfftfreq(len(out), 1 / RATE)[spectrum.argmax()] == pytest.approx(hz, abs=0.6)
    assert np.abs(out[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("factor", [0.5001, 0.7, 0.9, 1 / 1.1, 1.0, 1.1, math.sqrt(2), 1.9999])
def test_speed_never_makes_an_utterance_longer_than_planned(factor):
    augmentation = Augmentation(speed_factors=[factor])
    for length in [*range(60), 4999, 5000, 5003]:
        out = augmentation.apply(np.ones(length, np.float32), RATE, **OF)
        assert len(out) <= math.ceil(length * augmentation.longest_stretch) + 1
        assert np.isfinite(out).all()


def test_speed_of_one_is_the_very_waveform():
    waveform = tone(1)
    assert Augmentation(speed_factors=[1.0]).apply(waveform, RATE, **OF) is waveform


@pytest.mark.parametrize("gain", [-20.0, 0.0, 6.0])
def test_gain_is_exact_and_nothing_is_clipped(gain):
    out = Augmentation(gain_db=[gain, gain]).apply(tone(1), RATE, **OF)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, tone(1) * 10 ** (gain / 20), rtol=1e-6)
    loud = Augmentation(gain_db=[20, 20]).apply(tone(1), RATE, **OF)
    assert np.abs(loud).max() == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("seconds", [0.001, 0.2, 1.0, 2.9, 5.0])
@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_the_measured_ratio_is_the_one_drawn(noises, seconds, snr):
    speech = tone(seconds)
    out = Augmentation(noise_folder=noises, noise_snr_db=[snr, snr]).apply(speech, RATE, **OF)
    assert out.dtype == np.float32
    assert len(out) == len(speech)
    assert decibels(speech, out - speech) == pytest.approx(snr, abs=0.01)


def added(folder: Path, speech: np.ndarray, **of) -> np.ndarray:
    """Return the noise in what comes out, at the level it has in its file: its power is that of the speech."""
    out = Augmentation(noise_folder=str(folder), noise_snr_db=[0, 0]).apply(speech, RATE, **{**OF, **of})
    return out - speech


def test_longer_noise_is_cropped_at_a_random_place(tmp_path):
    noise = hiss(2)
    write(tmp_path / "a.wav", noise)
    places = []
    for epoch in range(20):
        piece = added(tmp_path, tone(0.5), epoch=epoch)
        place = int(np.correlate(noise, piece, mode="valid").argmax())
        assert np.corrcoef(piece, noise[place : place + len(piece)])[0, 1] > 0.9999
        places.append(place)
    assert len(set(places)) == 20
    assert min(places) < 0.5 * RATE < RATE < max(places)


def test_noise_of_the_same_length_is_taken_whole(tmp_path):
    noise = hiss(0.5)
    write(tmp_path / "a.wav", noise)
    assert np.corrcoef(added(tmp_path, tone(0.5)), noise)[0, 1] > 0.9999


def test_shorter_noise_is_repeated_from_a_random_place(tmp_path):
    noise = hiss(0.3)
    write(tmp_path / "a.wav", noise)
    starts = set()
    for epoch in range(5):
        looped = added(tmp_path, tone(1), epoch=epoch)
        np.testing.assert_allclose(looped[: -len(noise)], looped[len(noise) :], atol=1e-6)
        around = np.correlate(np.tile(noise, 2)[:-1], looped[: len(noise)], mode="valid")
        start = int(around.argmax())
        assert np.corrcoef(looped[: len(noise)], np.roll(noise, -start))[0, 1] > 0.9999
        starts.add(start)
    assert len(starts) == 5


@pytest.mark.parametrize(("suffix", "likeness"), [("wav", 0.9999), ("flac", 0.9999), ("ogg", 0.9), ("mp3", 0.9)])
def test_only_a_piece_of_a_long_recording_is_decoded(tmp_path, monkeypatch, suffix, likeness):
    noise = np.clip(hiss(45), -0.9, 0.9)
    noise = np.convolve(noise, np.ones(8) / 8, mode="same")  # what a lossy encoder keeps
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise, RATE)
    asked = []
    read = augment.audio.read
    monkeypatch.setattr(augment.audio, "read", lambda *args, **kwargs: asked.append(kwargs) or read(*args, **kwargs))
    speech = tone(0.5)
    places = []
    for epoch in range(5):
        piece = added(tmp_path, speech, epoch=epoch)
        size = 1 << 20
        across = np.fft.irfft(np.fft.rfft(noise, size) * np.conj(np.fft.rfft(piece, size)), size)
        place = int(across[: len(noise)].argmax())
        assert np.corrcoef(piece, noise[place : place + len(piece)])[0, 1] > likeness
        places.append(place)
    assert [kwargs["seconds"] for kwargs in asked] == [pytest.approx(0.6)] * 5
    assert max(places) - min(places) > 5 * RATE


def test_a_long_utterance_with_a_long_recording(tmp_path):
    write(tmp_path / "a.wav", hiss(33))
    for seconds in (32, 32.95, 33, 40):
        speech = tone(seconds)
        out = Augmentation(noise_folder=str(tmp_path), noise_snr_db=[3, 3]).apply(speech, RATE, **OF)
        assert decibels(speech, out - speech) == pytest.approx(3, abs=0.01)


def test_recordings_at_another_rate_in_stereo(tmp_path):
    write(tmp_path / "a.wav", np.stack([np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)] * 2, axis=1), 44100)
    piece = added(tmp_path, hiss(0.5))
    spectrum = np.abs(np.fft.rfft(piece))
    assert np.fft.rfftfreq(len(piece), 1 / RATE)[spectrum.argmax()] == pytest.approx(1000, abs=2)


def aligned(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """What reverberation should be, by numpy.convolve and arithmetic."""
    peak = int(np.abs(response).argmax())
    wet = np.convolve(waveform.astype(float), response.astype(float))[peak : peak + len(waveform)]
    return wet * np.sqrt(np.sum(waveform.astype(float) ** 2) / np.sum(wet**2))


@pytest.mark.parametrize("seconds", [0.0005, 0.1, 0.7])
def test_reverberation_is_the_convolution_aligned_to_the_direct_path(rooms, seconds):
    waveform = hiss(seconds, seed=9)
    out = Augmentation(reverberation_folder=rooms).apply(waveform, RATE, **OF)
    responses = [soundfile.read(path, dtype="float32")[0] for path in sorted(Path(rooms).iterdir())]
    assert out.dtype == np.float32
    assert min(np.abs(out - aligned(waveform, r)).max() for r in responses) < 1e-6
    assert decibels(out, waveform) == pytest.approx(0, abs=1e-4)


def test_reverberation_agrees_with_scipy():
    signal = pytest.importorskip("scipy.signal")
    waveform, response = hiss(0.5), hiss(0.2, seed=1)
    peak = int(np.abs(response).argmax())
    expected = signal.fftconvolve(waveform, response)[peak : peak + len(waveform)]
    out = augment.reverberate(waveform, response)
    assert np.corrcoef(out, expected)[0, 1] == pytest.approx(1, abs=1e-6)


def test_a_delayed_impulse_changes_nothing():
    response = np.zeros(900, np.float32)
    response[700] = -0.25
    np.testing.assert_allclose(augment.reverberate(hiss(0.2), response), -hiss(0.2), atol=1e-6)


# -- silence


@pytest.mark.parametrize("content", [np.zeros(RATE), np.zeros(100), np.zeros(0)], ids=["long", "short", "empty"])
@pytest.mark.parametrize("key", ["noise_folder", "reverberation_folder"])
def test_silent_recordings_change_nothing(tmp_path, content, key):
    write(tmp_path / "silent.wav", content)
    speech = tone(0.5)
    out = Augmentation(**{key: str(tmp_path)}).apply(speech, RATE, **OF)
    np.testing.assert_array_equal(out, speech)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("length", [0, 1, 2, 8000])
def test_silent_and_tiny_utterances_stay_finite(everything, length):
    for waveform in (np.zeros(length, np.float32), np.full(length, 1e-45, np.float32), np.ones(length, np.float32)):
        for epoch in range(8):
            out = everything.apply(waveform, RATE, seed=1, epoch=epoch, utterance_id="a")
            assert np.isfinite(out).all()
            assert out.dtype == np.float32
            assert waveform.any() or not out.any()


def test_faint_noise_is_raised_without_overflow(tmp_path):
    write(tmp_path / "faint.wav", np.full(100, 1e-44, np.float32))
    speech = tone(0.5)
    out = Augmentation(noise_folder=str(tmp_path), noise_snr_db=[-100, -100]).apply(speech, RATE, **OF)
    assert decibels(speech, out - speech) == pytest.approx(-100, abs=0.01)


# -- the dice


def augmented_hashes(augmentation: Augmentation) -> dict[str, str]:
    """A hash of what comes out for some utterances and epochs; runs in another process too."""
    waveform = (np.arange(3000, dtype=np.float32) % 100 - 50) / 100
    return {
        f"{i} {epoch}": hashlib.sha256(augmentation.apply(waveform, RATE, seed=7, epoch=epoch, utterance_id=i).tobytes()).hexdigest()
        for i in ("a", "b/ä", "c", "d")
        for epoch in range(3)
    }


def test_the_same_in_another_process(everything, tmp_path):
    here = augmented_hashes(everything)
    assert len(set(here.values())) == len(here)
    assert augmented_hashes(everything) == here
    path = tmp_path / "augmentation.pickle"
    path.write_bytes(pickle.dumps(everything))
    code = "import json, pickle, sys; from test_augment import *; "
    code += "print(json.dumps(augmented_hashes(pickle.loads(Path(sys.argv[1]).read_bytes()))))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


def test_the_order_of_asking_makes_no_difference(everything):
    ids = [str(i) for i in range(6)]

    def ask(order):
        return {i: everything.apply(tone(0.3), RATE, seed=1, epoch=0, utterance_id=i).tobytes() for i in order}

    assert ask(ids) == ask(ids[::-1])


def test_pickles_hold_no_recordings(everything):
    before = pickle.dumps(everything)
    everything.apply(tone(0.3), RATE, **OF)
    assert pickle.dumps(everything) == before
    assert len(before) < 2000


@pytest.mark.parametrize("change", [{"seed": 8}, {"epoch": 2}, {"utterance_id": "speaker-2"}, {"seed": 71, "epoch": 1}])
def test_seed_epoch_and_utterance_each_change_the_draw(change):
    augmentation = Augmentation(gain_db=[-10, 10])
    assert not np.array_equal(augmentation.apply(tone(0.1), RATE, **OF), augmentation.apply(tone(0.1), RATE, **{**OF, **change}))


def gain_of(augmentation: Augmentation, utterance_id: str) -> float:
    return decibels(augmentation.apply(tone(0.05), RATE, seed=0, epoch=0, utterance_id=utterance_id), tone(0.05))


def test_no_kind_moves_the_dice_of_another(noises, rooms, monkeypatch):
    """Speed, response, noise, ratio and gain, seen from outside: as drawn alone, so drawn in company."""
    seen: list[tuple] = []

    def spy(name, facts):
        inner = getattr(augment, name)
        monkeypatch.setattr(augment, name, lambda *args: (seen.append((name, *facts(*args))), inner(*args))[1])

    spy("change_speed", lambda waveform, factor: [factor])
    spy("reverberate", lambda waveform, response: [int(np.abs(response).argmax())])
    spy("add_noise", lambda waveform, noise, snr: [snr])
    spy("_piece", lambda path, rate, count, die: [path.name, die])
    spy("change_gain", lambda waveform, gain: [gain])
    kinds = [
        {"speed_factors": [0.9, 1.0, 1.1]},
        {"reverberation_folder": rooms, "reverberation_probability": 0.5},
        {"noise_folder": noises, "noise_probability": 0.7},
        {"gain_db": [-6, 6]},
    ]
    together = Augmentation(**{k: v for kind in kinds for k, v in kind.items()})
    for number in range(30):
        of = {"seed": 0, "epoch": 0, "utterance_id": str(number)}
        for kind in kinds:
            Augmentation(**kind).apply(hiss(0.1), RATE, **of)
        alone, seen[:] = list(seen), []
        together.apply(hiss(0.1), RATE, **of)
        assert seen == alone
        seen.clear()


def test_the_kinds_are_drawn_independently():
    kinds = ("speed", "reverberation", "noise", "gain")
    draws = np.array([[die for kind in kinds for die in augment._dice(kind, (0, 0, str(u)))] for u in range(2000)])
    between = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(between).max() < 0.1  # 4 standard deviations are 0.09
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.03
    assert draws.min() >= 0
    assert draws.max() < 1


def test_the_dice_are_those_of_the_first_release():
    """A change here changes what every seed gives; results are no longer repeatable from their run.json."""
    assert augment._dice("noise", (7, 1, "speaker-1")) == pytest.approx((0.816001355935, 0.046152682499, 0.036533200697, 0.711343511816))


def test_recordings_that_are_kept_can_not_be_changed(noises):
    samples = augment._decoded(Path(noises) / "long.wav", RATE)
    assert augment._decoded(Path(noises) / "long.wav", RATE) is samples
    with pytest.raises(ValueError, match="read-only"):
        samples[0] = 1


def test_the_probability_does_not_choose_the_recording(noises):
    of = [{"seed": 0, "epoch": 0, "utterance_id": str(n)} for n in range(40)]
    always, sometimes = (Augmentation(noise_folder=noises, noise_probability=p) for p in (1.0, 0.5))
    for out, whole in ((sometimes.apply(tone(0.1), RATE, **o), always.apply(tone(0.1), RATE, **o)) for o in of):
        assert np.array_equal(out, tone(0.1)) or np.array_equal(out, whole)


def test_each_speed_is_drawn_as_often():
    augmentation = Augmentation(speed_factors=[0.9, 1.0, 1.1])
    waveform = np.zeros(990, np.float32)
    lengths = Counter(len(augmentation.apply(waveform, RATE, seed=0, epoch=e, utterance_id=str(u))) for e in range(3) for u in range(500))
    assert set(lengths) == {1100, 990, 900}
    assert all(abs(count - 500) < 80 for count in lengths.values())  # 4 standard deviations are 73


def test_an_utterance_meets_every_speed_over_the_epochs():
    augmentation = Augmentation(speed_factors=[0.9, 1.0, 1.1])
    lengths = [len(augmentation.apply(np.zeros(990, np.float32), RATE, seed=0, epoch=e, utterance_id="a")) for e in range(30)]
    assert len(set(lengths)) == 3


@pytest.mark.parametrize("kind", ["noise", "reverberation"])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probability_is_the_share_that_is_touched(noises, rooms, kind, probability):
    folder = noises if kind == "noise" else rooms
    augmentation = Augmentation(**{f"{kind}_folder": folder, f"{kind}_probability": probability})
    waveform = hiss(0.01)
    touched = sum(augmentation.apply(waveform, RATE, seed=0, epoch=0, utterance_id=str(u)) is not waveform for u in range(600))
    assert touched / 600 == pytest.approx(probability, abs=0.08 * (0 < probability < 1))


def test_ratios_and_gains_are_uniform(noises):
    speech = tone(0.05)
    augmentation = Augmentation(noise_folder=noises)
    outs = [augmentation.apply(speech, RATE, seed=0, epoch=0, utterance_id=str(u)) for u in range(600)]
    ratios = [decibels(speech, out - speech) for out in outs]
    gains = [gain_of(Augmentation(gain_db=[-6, 6]), str(u)) for u in range(600)]
    for values, low, high in ((ratios, 0, 15), (gains, -6, 6)):
        quarters = np.histogram(values, bins=4, range=(low - 0.01, high + 0.01))[0]
        assert quarters.sum() == 600
        assert np.abs(quarters - 150).max() < 45  # 4 standard deviations are 42


def test_every_recording_is_used(noises, monkeypatch):
    used = Counter()
    inner = augment._piece
    monkeypatch.setattr(augment, "_piece", lambda path, *rest: (used.update([path.name]), inner(path, *rest))[1])
    for number in range(200):
        Augmentation(noise_folder=noises).apply(tone(0.01), RATE, seed=0, epoch=0, utterance_id=str(number))
    assert set(used) == {"long.wav", "short.FLAC"}
    assert min(used.values()) > 70


def test_what_is_given_is_never_written_to(everything):
    waveform = tone(0.5)
    waveform.flags.writeable = False
    for epoch in range(5):
        everything.apply(waveform, RATE, seed=0, epoch=epoch, utterance_id="a")
    np.testing.assert_array_equal(waveform, tone(0.5))


def test_importing_it_takes_neither_torch_nor_numpy():
    code = "import sys; import asr.augment; assert not {'torch', 'numpy', 'soundfile'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
