import hashlib

import pytest
import soundfile
from conftest import TINY_CORPUS

from asr.errors import ConfigError, DataError
from asr.sources import espeak
from asr.sources.spoken_digits import SPLITS, SpokenDigits, split_of


def digest(source: SpokenDigits) -> dict[str, str]:
    return {f"{split}/{row.id}": hashlib.sha256(row.audio.read_bytes()).hexdigest() for split in SPLITS for row in source.utterances(split)}


def test_splits_share_no_voice_and_no_sentence():
    plans = {split: SpokenDigits().plan(split) for split in SPLITS}
    assert {split: len(lines) for split, lines in plans.items()} == {"train": 2000, "validation": 200, "test": 200}
    for one, other in [("train", "validation"), ("train", "test"), ("validation", "test")]:
        assert not {x.voice for x in plans[one]} & {x.voice for x in plans[other]}
        assert not {x.voice.name for x in plans[one]} & {x.voice.name for x in plans[other]}
        assert not {x.text for x in plans[one]} & {x.text for x in plans[other]}
    assert all(split_of(line.text) == split for split, lines in plans.items() for line in lines)


def test_the_plan_depends_on_the_corpus_seed_alone():
    assert SpokenDigits().plan("test") == SpokenDigits().plan("test") != SpokenDigits(corpus_seed=1).plan("test")


def test_audio_is_16_khz_mono_and_as_long_as_speech(digits):
    for row in digits.utterances("train"):
        info = soundfile.info(str(row.audio))
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert 0.15 * len(row.text.split()) < info.duration < 1.2 * len(row.text.split())


@pytest.mark.slow
def test_a_second_synthesis_is_the_same_to_the_bit(digits, tmp_path):
    assert digest(digits) == digest(SpokenDigits(**TINY_CORPUS, root=str(tmp_path)))


@pytest.mark.slow
def test_the_number_of_cores_changes_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(espeak.os, "cpu_count", lambda: 5)
    assert digest(digits) == digest(SpokenDigits(**TINY_CORPUS, root=str(tmp_path)))


def test_the_cache_is_used_and_keyed_by_what_decides_the_audio(digits, monkeypatch):
    monkeypatch.setattr("asr.sources.spoken_digits.speak", lambda *a, **k: pytest.fail("synthesised again"))
    assert len(list(digits.utterances("test"))) == TINY_CORPUS["num_test_utterances"]
    assert SpokenDigits(**TINY_CORPUS, max_train_samples=3).folder() == digits.folder()
    assert SpokenDigits(**TINY_CORPUS, corpus_seed=1).folder() != digits.folder()


def test_a_failed_synthesis_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("espeak-ng stopped")

    monkeypatch.setattr("asr.sources.spoken_digits.speak", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        list(SpokenDigits(root=str(tmp_path)).utterances("train"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["/proc/x", "/etc/passwd"])
def test_a_root_that_can_not_hold_a_corpus_is_named(root):
    with pytest.raises(DataError, match=rf"^{root}/.*check dataset\.root"):
        list(SpokenDigits(root=root).utterances("train"))


def test_a_corpus_with_a_part_missing_is_named(digits, tmp_path):
    import shutil

    shutil.copytree(digits.folder(), tmp_path / digits.folder().name)
    (tmp_path / digits.folder().name / "test.jsonl").unlink()
    with pytest.raises(DataError, match="remove the folder to make it anew"):
        list(SpokenDigits(**TINY_CORPUS, root=str(tmp_path)).utterances("test"))


def test_a_voice_that_espeak_does_not_know_is_an_error(tmp_path):
    voice = espeak.Voice("v", "xx-nowhere", (100,), (80, 110), 2, 100)
    with pytest.raises(RuntimeError, match="espeak-ng"):
        espeak.speak([espeak.Line("a", "a.wav", "one", voice, 150, 50)], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"train_split": "dev"}, "train_split"),
        ({"min_digits": 5, "max_digits": 3}, "max_digits"),
        ({"max_duration_in_seconds": 0.5, "min_duration_in_seconds": 1}, "max_duration_in_seconds"),
    ],
)
def test_wrong_arguments_name_their_key(arguments, key):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        SpokenDigits(**arguments)


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("asr.sources.spoken_digits.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"asr-gaudi\[digits\]"):
        list(SpokenDigits(root=str(tmp_path)).utterances("train"))
