"""Tokens of frames to text and words with their frames, held against the tokenizer's own."""

import json

import numpy as np
import pytest

from asr import ctc_words


def test_words_and_their_frames_are_the_tokenizer_s_own(tokenizer):
    tokens = np.random.default_rng(0).choice([0, 0, 0, 2, 3, 4, 5, 6, 7, 8], 400).astype(np.int32)
    theirs = tokenizer.decode(tokens.tolist(), output_word_offsets=True)
    runs = ctc_words.runs(tokens, tokenizer.pad_token_id)
    assert ctc_words.written([token for token, _, _ in runs], tokenizer) == theirs.text
    ours = ctc_words.words(runs, tokenizer)
    assert [(w.text, w.begin, w.end) for w in ours] == [(o["word"], o["start_offset"], o["end_offset"]) for o in theirs.word_offsets]
    assert ctc_words.space(tokenizer) == " "


def test_nothing_is_said_in_no_frames(tokenizer):
    assert ctc_words.runs(np.zeros(0, np.int32), 0) == ctc_words.runs(np.zeros(9, np.int32), 0) == []
    assert ctc_words.words([], tokenizer) == []


@pytest.fixture
def pieces(tmp_path):
    """Return what makes a tokenizer of a list of tokens that has no word delimiter."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import Fuse, Metaspace, Sequence
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    def made(tokens):
        backend = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[1]))
        backend.decoder = Sequence([Metaspace(), Fuse()])
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=tokens[0], unk_token=tokens[1])

    return made


def test_pieces_that_begin_words(pieces):
    tokenizer = pieces(["[PAD]", "[UNK]", "▁hel", "lo", "▁you"])
    runs = ctc_words.runs(np.array([2, 2, 0, 3, 0, 0, 4, 4]), 0)
    assert [(w.text, w.begin, w.end) for w in ctc_words.words(runs, tokenizer)] == [("hello", 0, 4), ("you", 6, 8)]
    assert ctc_words.written([token for token, _, _ in runs], tokenizer) == "hello you"
    assert ctc_words.space(tokenizer) == " "


def test_without_a_word_delimiter_every_token_is_a_word(pieces):
    tokenizer = pieces(["[PAD]", "[UNK]", "你", "好"])
    runs = ctc_words.runs(np.array([2, 2, 0, 3]), 0)
    assert [w.text for w in ctc_words.words(runs, tokenizer)] == ["你", "好"]
    assert ctc_words.written([2, 3], tokenizer) == "你好"
    assert ctc_words.space(tokenizer) == ""


def test_a_tokenizer_whose_delimiter_is_not_in_its_vocabulary_has_none(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, "a": 2}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="[PAD]", unk_token="[UNK]", word_delimiter_token=None)
    assert ctc_words.word_delimiter_id(tokenizer) is None
