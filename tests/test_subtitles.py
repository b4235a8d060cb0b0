"""Transcripts as text, JSON, SubRip and WebVTT."""

import json
import re
from itertools import pairwise

from asr.subtitles import FORMATS, MOST_CHARACTERS, MOST_SECONDS, Said, Transcript, cues


def spoken(*texts, each=0.5, pause_after=()):
    words, at = [], 0.0
    for i, text in enumerate(texts):
        words.append(Said(text, at, at + each))
        at += each + (2.0 if i in pause_after else 0.0)
    return Transcript("a.wav", at, " ".join(texts), words)


def test_text_and_json():
    heard = spoken("grüße", "🙂")
    assert FORMATS["text"](heard) == "grüße 🙂\n"
    content = json.loads(FORMATS["json"](heard))
    assert content == {
        "audio": "a.wav",
        "seconds": 1.0,
        "text": "grüße 🙂",
        "words": [{"text": "grüße", "start": 0.0, "end": 0.5}, {"text": "🙂", "start": 0.5, "end": 1.0}],
    }
    parts = Transcript("a.wav", 9.0, "one two", parts=[Said("one two", 0, 9)])
    assert json.loads(FORMATS["json"](parts))["parts"] == [{"text": "one two", "start": 0, "end": 9}]


def test_subrip_and_webvtt():
    heard = spoken("one", "two", "three", pause_after=[1])
    assert FORMATS["srt"](heard) == "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n00:00:03,000 --> 00:00:03,500\nthree\n"
    assert FORMATS["vtt"](heard) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\none two\n\n00:00:03.000 --> 00:00:03.500\nthree\n"


def test_webvtt_has_no_tags_of_the_text():
    assert "<script>" not in FORMATS["vtt"](spoken("<script>", "-->", "&"))
    assert "&lt;script&gt; --&gt; &amp;" in FORMATS["vtt"](spoken("<script>", "-->", "&"))


def test_a_subtitle_is_two_lines_and_a_few_seconds():
    heard = spoken(*["word"] * 200, each=0.2)
    found = list(cues(heard))
    assert " ".join(cue.text for cue in found) == heard.text
    assert all(len(cue.text) <= MOST_CHARACTERS and cue.end - cue.start <= MOST_SECONDS + 1e-6 for cue in found)
    assert all(len(line) <= 50 for line in FORMATS["srt"](heard).splitlines())
    assert len(re.findall("-->", FORMATS["srt"](heard))) == len(found)


def test_parts_without_times_of_words_are_shared_out():
    heard = Transcript("a.wav", 30.0, "", parts=[Said("so many words " * 20, 0.0, 20.0), Said("the end", 20.0, 30.0)])
    found = list(cues(heard))
    assert all(a.end <= b.start + 1e-6 for a, b in pairwise(found))
    assert (found[0].start, round(found[-1].end, 6)) == (0.0, 30.0)


def test_writing_without_spaces_stays_so():
    words = [Said(character, i, i + 0.5) for i, character in enumerate("你好吗")]
    assert [cue.text for cue in cues(Transcript("a.wav", 3, "你好吗", words, space=""))] == ["你好吗"]


def test_nothing_said_is_no_subtitle():
    silent = Transcript("a.wav", 0.0, "", [])
    assert (FORMATS["srt"](silent), FORMATS["vtt"](silent), FORMATS["text"](silent)) == ("", "WEBVTT\n\n", "\n")
