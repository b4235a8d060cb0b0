import pytest

from asr.config import check_ranges
from asr.errors import ConfigError
from asr.text import TextRules


def test_a_hyphen_is_a_hyphen():
    # the published class [,?.!-;:] is a range from ! to ; that also deletes digits and apostrophes
    rules = TextRules(remove=",?.!-;:")
    assert rules("Don't stop: well-known, at 10!") == "don't stop wellknown at 10"


def test_characters_of_a_regular_expression_are_literal():
    assert TextRules(remove=["[", "]", "^", "\\", "a-c"])("[a^b]\\ c-d abc") == "b d b"


@pytest.mark.parametrize(("case", "expected"), [("lower", "äb"), ("upper", "ÄB"), ("keep", "Äb")])
def test_case(case, expected):
    assert TextRules(case=case)("Äb") == expected


def test_unicode_form_joins_letter_and_accent_in_text_and_in_what_is_removed():
    assert TextRules()("e\u0301") == "\u00e9"
    assert TextRules(unicode_normalization="NFD")("\u00e9") == "e\u0301"
    assert TextRules(unicode_normalization="none")("e\u0301") == "e\u0301"
    assert TextRules(remove="\u00e9")("cafe\u0301") == "caf"


@pytest.mark.parametrize("case", ["lower", "upper", "keep"])
@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
def test_normalising_twice_changes_nothing(case, form):
    """A perfect hypothesis is a normalised reference that is normalised again: it must score as perfect."""
    rules = TextRules(case=case, unicode_normalization=form, remove="Ee-")
    letters = [chr(c) for c in range(0x20, 0x2FFF) if chr(c).isprintable()]
    for letter in letters:
        once = rules(f"a{letter}b")
        assert rules(once) == once, hex(ord(letter))


def test_words_stay_apart():
    assert TextRules(remove=" x")("one  two\tx three ") == "one two three"


@pytest.mark.parametrize(("key", "value"), [("case", "Lower"), ("unicode_normalization", "NFX")])
def test_wrong_choices_name_the_key(key, value):
    with pytest.raises(ConfigError, match=key):
        check_ranges(TextRules(**{key: value}))


def test_remove_must_be_text():
    with pytest.raises(ConfigError, match="remove"):
        TextRules(remove=[1, 2])
