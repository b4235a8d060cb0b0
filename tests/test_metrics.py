"""Golden cases, and agreement with jiwer called directly."""

import jiwer
import pytest

from asr import metrics
from asr.errors import ConfigError

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
        assert metrics.load(name)(references=references, predictions=hypotheses) == pytest.approx(expected)


def test_match_error_rate_is_jiwers():
    references, hypotheses = ["a b c d"], ["a x c d e"]
    assert metrics.load("mer")(references=references, predictions=hypotheses) == jiwer.mer(references, hypotheses)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"), [("one two", "one two", 0), ("", "a b", 2), ("a b", "", 2), ("a b", "b", 1)]
)
def test_word_errors(reference, hypothesis, errors):
    assert metrics.word_errors(reference, hypothesis) == errors


def test_names_are_checked_without_loading():
    metrics.check_names(["wer", "cer", "mer", "./my/metric.py", "someone/metric"])
    with pytest.raises(ConfigError, match="Did you mean wer"):
        metrics.check_names(["wre"])


def test_a_module_that_can_not_be_had_is_named():
    with pytest.raises(ConfigError, match="nosuch/metric"):
        metrics.load("nosuch/metric")


def test_another_evaluate_module_from_disk(tmp_path):
    source = (metrics.MODULES / "wer.py").read_text().replace("class Wer", "class Halved").replace("return float(", "return 0.5 * float(")
    (tmp_path / "halved.py").write_text(source)
    assert metrics.load(str(tmp_path / "halved.py"))(references=["a"], predictions=["b"]) == 0.5
