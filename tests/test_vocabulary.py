import json

import pytest
from conftest import composed

from asr.errors import ConfigError, DataError
from asr.pipeline import Pipeline
from asr.vocabulary import Vocabulary, unknown_characters


def test_a_vocabulary_that_is_there_is_read_and_not_written_again(tmp_path):
    """All ranks of a run read it at once: one that wrote it, even the same, would show the others an empty file."""
    written = Vocabulary().tokenizer_from(Vocabulary().build(["ab cd"]), tmp_path)
    before = (tmp_path / "vocab.json").stat()
    pipeline = Pipeline.of(composed())
    assert pipeline.tokenizer(tmp_path).get_vocab() == written.get_vocab()
    after = (tmp_path / "vocab.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_pad_is_zero_and_characters_are_in_code_point_order():
    built = Vocabulary().build(["b a", "cä b", "1"])
    assert list(built) == ["[PAD]", "[UNK]", "|", "1", "a", "b", "c", "ä"]
    assert list(built.values()) == list(range(8))


@pytest.mark.parametrize(("tokens", "transcript"), [({"pad_token": "o"}, "one"), ({"unk_token": "e"}, "one"), ({}, "a [PAD] b")])
def test_special_tokens_in_the_text_are_refused(tokens, transcript):
    with pytest.raises(DataError, match=r"which is vocabulary\.(pad|unk)_token"):
        Vocabulary(**tokens).build([transcript])


def test_the_word_delimiter_is_one_character():
    with pytest.raises(ConfigError, match=r"^word_delimiter_token: '<sp>' is not one character"):
        Vocabulary(word_delimiter_token="<sp>")


def test_a_tokenizer_folder_that_is_not_there_is_known_at_once():
    with pytest.raises(ConfigError, match=r"^tokenizer_name_or_path: there is no folder"):
        Vocabulary(tokenizer_name_or_path="./nosuch").check_reachable()


def test_the_order_of_transcripts_does_not_matter():
    assert Vocabulary().build(["ab", "cd"]) == Vocabulary().build(["dc", "ba", "ab"])


def test_a_delimiter_in_the_text_is_refused_with_the_mend():
    with pytest.raises(DataError, match=r"add it to text\.remove"):
        Vocabulary().build(["a|b"])
    assert "|" in Vocabulary(word_delimiter_token="_").build(["a|b"])


@pytest.mark.parametrize("tokens", [{"pad_token": "|"}, {"unk_token": ""}, {"unk_token": "[PAD]"}])
def test_special_tokens_must_differ(tokens):
    with pytest.raises(ConfigError, match="must differ"):
        Vocabulary(**tokens)


def test_a_built_tokenizer_spells_and_reads_back(tmp_path):
    vocabulary = Vocabulary()
    tokenizer = vocabulary.tokenizer_from(vocabulary.build(["ab cd"]), tmp_path)
    assert len(tokenizer) == 7  # no <s> and </s> on top
    assert tokenizer.pad_token_id == 0
    ids = vocabulary.encode(tokenizer, "ab cd")
    assert ids == [3, 4, 2, 5, 6]
    assert tokenizer.decode([3, 3, 0, 3, 4, 0, 2, 2, 5, 6, 6]) == "aab cd"
    assert json.loads((tmp_path / "vocab.json").read_text())["|"] == 2


def test_saved_tokenizers_load_and_report_what_they_lack(tmp_path):
    vocabulary = Vocabulary()
    vocabulary.tokenizer_from(vocabulary.build(["ABC"]), tmp_path).save_pretrained(tmp_path / "t")
    tokenizer = vocabulary.tokenizer_of(str(tmp_path / "t"), key="k")
    assert unknown_characters(tokenizer, ["abcA x", "b"]) == {"b": 2, "a": 1, "c": 1, "x": 1}
    assert unknown_characters(tokenizer, ["ABC CAB"]) == {}


def test_a_tokenizer_that_is_not_there_names_the_key():
    with pytest.raises(ConfigError, match=r"^vocabulary\.tokenizer_name_or_path: the tokenizer of 'nosuch/tokenizer' is neither"):
        Vocabulary().tokenizer_of("nosuch/tokenizer", key="vocabulary.tokenizer_name_or_path")


def test_rebuild_and_a_given_tokenizer_exclude_each_other():
    with pytest.raises(ConfigError, match="rebuild"):
        Vocabulary(rebuild=True, tokenizer_name_or_path="x")


def test_phonemes_of_a_language(tmp_path, monkeypatch):
    """A phoneme tokenizer gets the language; phonemizer itself does the work, with espeak-ng from the wheel."""
    espeakng_loader = pytest.importorskip("espeakng_loader")
    pytest.importorskip("phonemizer")
    from transformers import Wav2Vec2PhonemeCTCTokenizer

    monkeypatch.setenv("PHONEMIZER_ESPEAK_LIBRARY", str(espeakng_loader.get_library_path()))
    monkeypatch.setenv("ESPEAK_DATA_PATH", str(espeakng_loader.get_data_path()))
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(["<pad>", "<unk>", "w", "ʌ", "n", "t", "uː"])}))
    tokenizer = Wav2Vec2PhonemeCTCTokenizer(str(tmp_path / "vocab.json"), phonemizer_lang="de")
    ids = Vocabulary(phoneme_language="en-us").encode(tokenizer, "one two")
    assert tokenizer.convert_ids_to_tokens(ids) == ["w", "ʌ", "n", "t", "uː"]
