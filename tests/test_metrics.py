"""Golden cases, and agreement with jiwer called directly."""

import random
from pathlib import Path

import jiwer
import pytest
import torch
from transformers import EvalPrediction

from asr import ctc_outputs, metrics
from asr.errors import ConfigError, DataError
from asr.sources import Utterance

CASES = [  # references, hypotheses, wer, cer
    (["one two three"], ["one two three"], 0.0, 0.0),
    (["one two three"], ["one too three"], 1 / 3, 1 / 13),
    (["one two"], [""], 1.0, 1.0),
    (["", "one two"], ["x", "one two"], 0.5, 1 / 7),  # an insertion where nothing was said counts
    ([""], [""], 0.0, 0.0),
    (["straße über"], ["strasse über"], 0.5, 2 / 11),
    (["你好 世界"], ["你好 世"], 0.5, 1 / 5),
    (["Ja"], ["ja"], 1.0, 0.5),  # case counts here; text.case levels it before
    (["a b c", "d"], ["a b c", "e f"], 0.5, 3 / 6),
    (["café"], ["cafe\u0301"], 1.0, 2 / 4),  # unicode forms too
]


@pytest.mark.parametrize(("references", "hypotheses", "wer", "cer"), CASES)
def test_golden(references, hypotheses, wer, cer):
    for name, expected in (("wer", wer), ("cer", cer)):
        assert metrics.load(name)(references=references, predictions=hypotheses) == {name: pytest.approx(expected)}


@pytest.mark.parametrize("name", metrics.BUILT_IN)
def test_rates_are_jiwer_s_to_the_last_digit_however_many_utterances_it_gets_at_once(name):
    dice = random.Random(0)
    said, heard = ([" ".join(dice.choices("abcd", k=dice.randrange(6))) for _ in range(700)] for _ in range(2))
    assert metrics.load(name)(references=said, predictions=heard) == {name: getattr(jiwer, name)(said, heard)}
    silent = ["", ""]
    for heard in (["a b", "c"], silent):
        assert metrics.load(name)(references=silent, predictions=heard) == {name: getattr(jiwer, name)(silent, heard)}


def batch(tokens, rows, losses):
    return EvalPrediction(predictions=(torch.tensor(losses), torch.tensor(tokens)), label_ids=torch.tensor(rows))


def test_batches_one_by_one_score_like_all_at_once(tokenizer):
    utterances = [Utterance(str(i), Path("a.wav"), "") for i in range(3)]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcdef"]
    tokens, losses = [letters[:2], letters[2:4], letters[:2], letters[4:6]], [1.0, 2.0, 5.0, 4.0]
    scorer = metrics.Scorer(utterances, ["ab", "cd", "eg"], ctc_outputs.decoder(tokenizer), str.strip)
    whole = scorer(batch(tokens, [0, 1, -1, 2], losses)), scorer.predictions
    assert whole[0] == {"loss": pytest.approx(7 / 3), "wer": pytest.approx(1 / 3), "cer": pytest.approx(1 / 6)}
    for i, row in ((3, 2), (0, 0), (2, -1)):
        assert scorer(batch([[*tokens[i], -100]], [row], [losses[i]]), compute_result=False) == {}
    assert (scorer(batch([tokens[1]], [1], [losses[1]])), scorer.predictions) == whole
    with pytest.raises(DataError, match="no utterance of the evaluation could be decoded"):  # of the one before nothing is left
        scorer(batch([tokens[0]], [-1], [1.0]))
    scorer(batch([tokens[0]], [0], [1.0]), compute_result=False)
    scorer.begin()
    scorer(batch([tokens[1]], [1], [2.0]))
    assert [line["id"] for line in scorer.predictions] == ["1"]


def test_match_error_rate_is_jiwers():
    references, hypotheses = ["a b c d"], ["a x c d e"]
    assert metrics.load("mer")(references=references, predictions=hypotheses) == {"mer": jiwer.mer(references, hypotheses)}


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"), [("one two", "one two", 0), ("", "a b", 2), ("a b", "", 2), ("a b", "b", 1)]
)
def test_word_errors(reference, hypothesis, errors):
    assert metrics.word_errors(reference, hypothesis) == errors


def test_intervals_hold_the_rates_that_they_belong_to():
    dice = random.Random(1)
    said = [" ".join(dice.choices("abcd", k=dice.randrange(1, 6))) for _ in range(200)]
    heard = [text if dice.random() < 0.7 else " ".join(dice.choices("abcd", k=3)) for text in said]
    lines = [{"reference": reference, "hypothesis": hypothesis} for reference, hypothesis in zip(said, heard, strict=True)]
    found = metrics.intervals(lines, ["mer", "wer", "cer"])
    assert list(found) == ["mer_low", "mer_high", "wer_low", "wer_high", "cer_low", "cer_high"]
    for name in metrics.BUILT_IN:
        rate = metrics.load(name)(references=said, predictions=heard)[name]
        assert found[f"{name}_low"] < rate < found[f"{name}_high"]
        counts = [metrics.counted(name, *pair) for pair in zip(said, heard, strict=True)]
        assert sum(errors for errors, _ in counts) / sum(out_of for _, out_of in counts) == rate
    assert metrics.intervals(lines, ["wer"]) == {name: found[name] for name in ("wer_low", "wer_high")}


def test_where_nothing_was_said_or_scored_there_is_no_interval():
    assert metrics.intervals([{"reference": "", "hypothesis": "a"}], ["wer", "cer"]) == {}
    assert metrics.intervals([], ["wer"]) == {}
    assert metrics.intervals([{"reference": "a", "hypothesis": "a"}], ["characters.py", "wer"]) == {"wer_low": 0.0, "wer_high": 0.0}


CHARACTERS = """
import datasets
import evaluate


class Characters(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return sum(map(len, predictions))
"""


def test_another_evaluate_module_from_disk(tmp_path, monkeypatch):
    (tmp_path / "characters.py").write_text(CHARACTERS)
    metrics.check_names(["wer", "cer", "mer", str(tmp_path / "characters.py")])
    assert metrics.load(str(tmp_path / "characters.py"))(references=["a"], predictions=["bcd"]) == 3
    monkeypatch.chdir(tmp_path)
    assert metrics.load("characters.py")(references=["a"], predictions=["bc"]) == 2


@pytest.mark.parametrize("name", ["wre", "someone/metric", "./gone.py", "exact_match"])
def test_what_is_no_local_file_is_refused_for_it_would_be_remote_code(name):
    with pytest.raises(ConfigError, match=r"^eval_metrics: .*is not one of wer, cer, mer"):
        metrics.check_names([name])


def test_a_file_that_is_no_module_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nosuchpackage\n")
    with pytest.raises(ConfigError, match=r"broken\.py"):
        metrics.load(str(tmp_path / "broken.py"))
