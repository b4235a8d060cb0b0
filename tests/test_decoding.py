"""A beam search with a language model, held against the best token of each frame."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from conftest import TINY, composed

from asr import ctc_words, decoding, metrics, replay, transcription
from asr.ctc_outputs import decoder as text_of_tokens
from asr.ctc_outputs import searched_tokens
from asr.decoding import BeamDecoder, GreedyDecoder, Stretches
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.sources import Utterance

pytest.importorskip("flashlight.lib.text.decoder.kenlm")

ARPA = r"""\data\
ngram 1=6
ngram 2=4

\1-grams:
-99	<s>	-0.3
-1.0	</s>
-1.5	<unk>
-0.6	ab	-0.3
-0.6	cafe	-0.3
-0.6	ZZ	-0.3

\2-grams:
-0.3	<s> ab
-0.3	ab cafe
-0.3	cafe </s>
-0.9	cafe ab

\end\
"""
BINARY = zlib.decompress(
    base64.b64decode(
        "eNrLzU0sUMjJVcgoKSmw0tfPzkhNTMtMzUnRS87P1U/OT0lVSMsvyk0sUShLLSrOzM9TMOViQIAGeyCxnxFI/AcCkAgjVIYJTB6w"
        "RxZjg9IsDKiAjYF0wJXz/WNt8YNskD0/Lgb/29S6L4kZyC6oU9xr2VYKtnOJ8e4qVZ8WQZB9+tyWy7d9Vb/FCnHXfpDjGRiOHZo1"
        "c+Y+qD8aZs2UtAfxkej9EHkI4PjElNGy0VgYJNZY9PZDbXVNK4i9pve2CHNi2pq0tLT9uNyr2WZ+Yc+hZgWQepvSvGw7BptiINYH"
        "EolJDMmJaakMUVEMAEbbYDA="
    )
)
"""What KenLM 0.3.0's own `build_binary` makes of ARPA."""
CHARACTERS = r"""\data\
ngram 1=10
ngram 2=1

\1-grams:
-99	<s>
-1.0	</s>
-3.0	<unk>
-0.9	|
-0.7	a
-0.9	b
-0.9	c
-3.0	d
-0.9	e
-0.9	f

\2-grams:
-0.5	c a

\end\
"""


@pytest.fixture
def arpa(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    return tmp_path / "lm.arpa"


def log_probs(tokenizer, text, noise=1.5, seed=0):
    """Return what a model that is not sure says of a text, two frames a letter: float32 [frames, tokens]."""
    ids = tokenizer.get_vocab()
    frames = [token for letter in text for token in (0, ids["|" if letter == " " else letter])] + [0]
    values = np.random.default_rng(seed).normal(0, noise, (len(frames), len(tokenizer))).astype(np.float32)
    values[np.arange(len(frames)), frames] += 3
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def read(tokens, tokenizer):
    return ctc_words.written([token for token, _, _ in ctc_words.runs(tokens, 0)], tokenizer)


@pytest.mark.parametrize(("text", "seed"), [("ab cafe", 0), ("ab cafe", 1), ("cafe ab cafe", 0), ("ab", 1)])
def test_the_language_model_mends_what_the_best_tokens_get_wrong(tokenizer, arpa, text, seed):
    heard = log_probs(tokenizer, text, seed=seed)
    path = BeamDecoder(lm=str(arpa), lm_weight=2.0).search(tokenizer)(heard)
    assert read(heard.argmax(axis=1), tokenizer) != text
    assert read(path, tokenizer) == text
    assert (path.dtype, path.shape) == (np.int32, (len(heard),))
    words = ctc_words.words(ctc_words.runs(path, 0), tokenizer)
    assert [word.text for word in words] == text.split()
    starts = [2 * text.index(word) for word in dict.fromkeys(text.split())]
    assert all(abs(word.begin - start) <= 2 for word, start in zip(words, starts, strict=False))


@pytest.mark.parametrize("text", ["ab", "cafe ab", "abba", "ffaabb dd"])
def test_what_is_heard_clearly_comes_out_as_it_is_without_a_lexicon(tokenizer, tmp_path, text):
    (tmp_path / "letters.arpa").write_text(CHARACTERS)
    heard = log_probs(tokenizer, text, noise=0.0)
    for weight in (0.0, 0.2):
        search = BeamDecoder(lm=str(tmp_path / "letters.arpa"), lexicon_free=True, lm_weight=weight).search(tokenizer)
        assert read(search(heard), tokenizer) == text == read(heard.argmax(axis=1), tokenizer)


def test_a_lexicon_says_which_words_there_are(tokenizer, arpa, tmp_path):
    (tmp_path / "words.txt").write_text("ab\n\ncafe\td e a f\nnö\n")
    search = BeamDecoder(lm=str(arpa), lexicon=str(tmp_path / "words.txt")).search(tokenizer)
    assert read(search(log_probs(tokenizer, "ab deaf", noise=0.5)), tokenizer) == "ab deaf"


@pytest.mark.parametrize(("text", "seed"), [("ab cafe", 0), ("cafe ab cafe", 0)])
def test_kenlm_s_binary_does_as_its_arpa_does(tokenizer, arpa, tmp_path, text, seed):
    (tmp_path / "lm.bin").write_bytes(BINARY)
    (tmp_path / "words.txt").write_text("ab\ncafe\n")
    heard = log_probs(tokenizer, text, seed=seed)
    binary = BeamDecoder(lm=str(tmp_path / "lm.bin"), lexicon=str(tmp_path / "words.txt"), lm_weight=2.0).search(tokenizer)
    assert read(binary(heard), tokenizer) == text
    assert (binary(heard) == BeamDecoder(lm=str(arpa), lm_weight=2.0).search(tokenizer)(heard)).all()


def test_no_frames_have_no_tokens(tokenizer, arpa):
    assert BeamDecoder(lm=str(arpa)).search(tokenizer)(np.zeros((0, len(tokenizer)), np.float32)).shape == (0,)


def refused(decoder, tokenizer=None):
    with pytest.raises(ConfigError) as caught:
        decoder.search(tokenizer) if tokenizer else decoder.check_reachable()
    return caught.value.key, str(caught.value)


@pytest.mark.parametrize("at", [60, 130, ARPA.index("\\2-grams"), ARPA.index("\\end")])
def test_an_arpa_file_cut_short_is_told_before_anything_is_loaded(tmp_path, at):
    (tmp_path / "lm.arpa").write_text(ARPA[:at])
    key, message = refused(BeamDecoder(lm=str(tmp_path / "lm.arpa")))
    assert key == "lm"
    assert "is cut short" in message


def test_an_arpa_file_with_a_hole_is_told(tmp_path, tokenizer):
    (tmp_path / "lm.arpa").write_text(ARPA.replace("-0.3\tab cafe\n", ""))
    key, message = refused(BeamDecoder(lm=str(tmp_path / "lm.arpa")), tokenizer)
    assert key == "lm"
    assert "can't be read as an n-gram model" in message


def test_what_is_no_language_model_is_told(tmp_path, tokenizer):
    (tmp_path / "words.txt").write_text("ab\n")
    (tmp_path / "lm.bin").write_bytes(b"\0" * 500)
    assert refused(BeamDecoder())[0] == "lm"
    assert refused(BeamDecoder(lm=str(tmp_path / "nosuch.arpa"))) == ("lm", f"lm: there is no file '{tmp_path / 'nosuch.arpa'}'.")
    assert refused(BeamDecoder(lm=str(tmp_path / "lm.bin")))[0] == "lexicon"
    key, message = refused(BeamDecoder(lm=str(tmp_path / "lm.bin"), lexicon=str(tmp_path / "words.txt")), tokenizer)
    assert key == "lm"
    assert "can't be read as an n-gram model" in message


def test_words_of_the_other_case_are_told(tmp_path, tokenizer):
    (tmp_path / "lm.arpa").write_text(ARPA.replace("ab", "AB").replace("cafe", "CAFE"))
    key, message = refused(BeamDecoder(lm=str(tmp_path / "lm.arpa")), tokenizer)
    assert key == "lm"
    assert "of the other case" in message
    assert "none of the tokenizer's tokens" in refused(BeamDecoder(lm=str(tmp_path / "lm.arpa"), lexicon_free=True), tokenizer)[1]


def test_a_tokenizer_without_a_word_delimiter_is_told_and_can_be_searched_without_words(tmp_path, arpa):
    from transformers import Wav2Vec2CTCTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, **{c: i for i, c in enumerate("abcdef", 2)}}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="[PAD]", unk_token="[UNK]", word_delimiter_token=None)
    key, message = refused(BeamDecoder(lm=str(arpa)), tokenizer)
    assert key == "lm"
    assert "no word delimiter" in message
    (tmp_path / "letters.arpa").write_text(CHARACTERS)
    search = BeamDecoder(lm=str(tmp_path / "letters.arpa"), lexicon_free=True).search(tokenizer)
    heard = log_probs(tokenizer, "abcafe", noise=0.0)
    assert "".join(tokenizer.convert_ids_to_tokens([t for t, _, _ in ctc_words.runs(search(heard), 0)])) == "abcafe"


@pytest.mark.parametrize(
    ("values", "key"), [({"lexicon": "w", "lexicon_free": True}, "lexicon"), ({"word_score": 1.0, "lexicon_free": True}, "word_score")]
)
def test_values_that_exclude_each_other(values, key):
    with pytest.raises(ConfigError) as caught:
        BeamDecoder(lm="lm.arpa", **values)
    assert caught.value.key == key


def test_a_long_recording_is_searched_in_stretches(tokenizer, arpa, monkeypatch):
    monkeypatch.setattr(decoding, "STRETCH", 60)
    heard = log_probs(tokenizer, "ab cafe " * 20 + "ab", noise=1.0)
    sizes = []
    search = BeamDecoder(lm=str(arpa), lm_weight=2.0).search(tokenizer)

    def counted(part):
        sizes.append(len(part))
        return search(part)

    stretches = Stretches(counted, 0)
    for begin in range(0, len(heard), 25):
        stretches.add(heard[begin : begin + 25])
    tokens = stretches.end()
    assert len(tokens) == len(heard) == sum(sizes)
    assert max(sizes) < 90
    assert len(sizes) > 3
    assert metrics.word_errors("ab cafe " * 20 + "ab", read(tokens, tokenizer)) <= 2 * len(sizes)


def test_fillers_and_padding_are_not_searched(tokenizer):
    seen = []

    def search(part):
        seen.append(part.shape)
        return np.full(len(part), 5, np.int32)

    logits = torch.randn(3, 7, len(tokenizer))
    found = searched_tokens(search, logits, torch.tensor([7, 4, 6]), (True, True, False), 0)
    assert seen == [(7, 9), (4, 9)]
    assert found.tolist() == [[5] * 7, [5] * 4 + [0] * 3, [0] * 7]


def test_both_decodings_are_scored(tokenizer):
    from types import SimpleNamespace

    utterances = [Utterance(f"u{i}", None, text) for i, text in enumerate(("ab", "cd"))]
    scorer = metrics.Scorer(utterances, ["ab", "cd"], text_of_tokens(tokenizer), str.strip, searches=True)
    ids = tokenizer.get_vocab()
    greedy = np.array([[ids["a"], ids["b"]], [ids["c"], ids["c"]]])
    searched = np.array([[ids["a"], ids["b"], 0], [ids["c"], ids["d"], -100]])
    scores = scorer(SimpleNamespace(predictions=(np.array([1.0, 3.0]), greedy, searched), label_ids=np.array([0, 1])))
    assert (scores["wer"], scores["wer_greedy"], scores["cer_greedy"], scores["loss"]) == (0.0, 0.5, 0.25, 2.0)
    assert [(line["hypothesis"], line["greedy"]) for line in scorer.predictions] == [("ab", "ab"), ("cd", "c")]


def test_the_decoder_is_chosen_in_the_configuration(arpa):
    assert isinstance(Pipeline.of(composed()).decoder, GreedyDecoder)
    beam = Pipeline.of(composed("decoder=beam", f"decoder.lm={arpa}", "decoder.beam_size=9")).decoder
    assert (beam.lm, beam.beam_size, beam.searches) == (str(arpa), 9, True)
    before = composed()
    del before["decoder"]  # a run of before there was any
    assert isinstance(Pipeline.of(before).decoder, GreedyDecoder)
    with pytest.raises(ConfigError, match=r"^decoder\.beam_size: 0 is out of range"):
        Pipeline.of(composed("decoder=beam", "decoder.beam_size=0"))
    with pytest.raises(ConfigError, match=r"^decoder: searches for CTC"):
        Pipeline.of(composed("decoder=beam", "model=digits_whisper", "trainer=seq2seq"))
    with pytest.raises(ConfigError, match=r"^decoder\.lm: is missing"):
        Pipeline.of(composed("decoder=beam")).check_reachable()


def test_a_decoder_of_the_command_line(arpa):
    assert transcription.decoder_of([]) is None
    assert isinstance(transcription.decoder_of(["greedy"]), GreedyDecoder)
    made = transcription.decoder_of([f"lm={arpa}", "lm_weight=0.5", "lexicon_free=false"])
    assert (made.lm, made.lm_weight, made.lexicon_free) == (str(arpa), 0.5, False)
    for words in (["beam"], ["lm_wieght=1"], ["beam_size=many"]):
        with pytest.raises(ConfigError, match="--decoder"):
            transcription.decoder_of(words)


DIGITS = "zero one two three four five six seven eight nine".split()


@pytest.mark.slow
def test_a_run_s_model_is_scored_with_a_language_model_and_transcribes_with_it(launch, run_dir, tmp_path):
    unigrams = "\n".join(["-99\t<s>", "-1.0\t</s>", "-2.0\t<unk>", *(f"-1.0\t{word}" for word in DIGITS)])
    sections = f"\\1-grams:\n{unigrams}\n\n\\2-grams:\n-0.9\tone two\n"
    (tmp_path / "digits.arpa").write_text(f"\\data\\\nngram 1=13\nngram 2=1\n\n{sections}\n\\end\\\n")

    model = f"model.name_or_path={run_dir / 'model'}"
    done = launch(tmp_path, *TINY, "stages=[evaluate]", model, "decoder=beam", "decoder.lm=digits.arpa", "hydra.run.dir=r")
    assert done.code == 0, done.err
    measured = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert {"eval_wer", "eval_wer_greedy", "eval_cer", "eval_cer_greedy"} <= measured.keys()
    lines = [json.loads(line) for line in (tmp_path / "r" / "predictions.jsonl").read_text().splitlines()]
    assert {word for line in lines for word in line["hypothesis"].split()} <= set(DIGITS)
    assert "greedily" in done.out
    code, again = replay.again(tmp_path / "r", into=tmp_path / "again")
    assert (code, again.metrics["eval_wer"]) == (0, measured["eval_wer"])
    split = json.loads((tmp_path / "r" / "manifest" / "eval.jsonl").read_text().splitlines()[0])
    shown = []
    transcription.transcribe(str(run_dir), [split["audio"]], decoder=BeamDecoder(lm=str(tmp_path / "digits.arpa")), show=shown.append)
    assert shown == [lines[0]["hypothesis"]]
