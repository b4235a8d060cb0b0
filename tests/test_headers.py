"""Headers are read once, in parallel, and a cache that can't be trusted isn't: the log says why."""

import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
import soundfile

from asr import headers, manifest
from asr.sources import Source, Utterance


@dataclass(kw_only=True)
class Files(Source):
    rows: list = field(default_factory=list)
    text_column: str = "text"

    def inputs(self):
        return {"source": "Files", "text_column": self.text_column}


@pytest.fixture
def corpus(tmp_path, monkeypatch, caplog):
    """Six files, a cache folder of their own, and the log."""
    caplog.set_level("INFO", "asr")
    monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))
    return [made(tmp_path, i) for i in range(1, 7)]


def made(folder, i):
    path = folder / f"u{i}.wav"
    soundfile.write(path, np.zeros(1600 * i), 16000)
    return Utterance(f"u{i}", path, "text")


def seconds(rows, **options):
    facts = headers.read_all(rows, Files(**options), "train")
    return [facts[headers.key_of(row)].seconds for row in rows]


@pytest.fixture
def opened(monkeypatch):
    """The files whose headers were read, rather than remembered."""
    paths = []
    before = headers.audio.seconds_of
    monkeypatch.setattr(headers.audio, "seconds_of", lambda path, **cell: paths.append(path.name) or before(path, **cell))
    return paths


def cache_file(tmp_path):
    (path,) = (tmp_path / "cache" / "headers").glob("*.jsonl")
    return path


def test_a_second_run_reads_no_header(corpus, opened, caplog):
    assert seconds(corpus) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert len(opened) == 6
    assert "no cache is used, none was made yet" in caplog.text
    assert seconds(corpus) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert len(opened) == 6
    assert "6 of 6 from the cache" in caplog.text


def test_only_new_and_changed_files_are_read(corpus, opened, tmp_path, caplog):
    seconds(corpus[:4])
    opened.clear()
    soundfile.write(corpus[1].audio, np.zeros(16000), 16000)
    assert seconds(corpus)[1] == 1.0
    assert sorted(opened) == ["u2.wav", "u5.wav", "u6.wav"]
    assert "3 of 6 from the cache (2 new, 1 changed or gone since)" in caplog.text


def test_a_file_that_comes_back_is_read_again(corpus, tmp_path):
    content = corpus[0].audio.read_bytes()
    corpus[0].audio.unlink()
    facts = headers.read_all(corpus, Files(), "train")
    assert "is not there" in facts[headers.key_of(corpus[0])].problem
    corpus[0].audio.write_bytes(content)
    assert seconds(corpus)[0] == pytest.approx(0.1)


def test_a_limited_run_forgets_nothing(corpus, opened, caplog):
    seconds(corpus)
    opened.clear()
    headers.read_all(corpus[:2], Files(), "train", partial=True)
    soundfile.write(corpus[0].audio, np.zeros(16000), 16000)
    headers.read_all(corpus[:2], Files(), "train", partial=True)
    assert seconds(corpus)[0] == 1.0
    assert opened == ["u1.wav"]


def test_a_file_of_the_same_size_but_changed_later_is_read_again(corpus, opened):
    seconds(corpus)
    opened.clear()
    found = corpus[2].audio.stat()
    os.utime(corpus[2].audio, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    seconds(corpus)
    assert opened == ["u3.wav"]


def test_what_is_gone_is_forgotten(corpus, tmp_path):
    seconds(corpus)
    seconds(corpus[:4])
    assert len(cache_file(tmp_path).read_text().splitlines()) == 4 + 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_cache_file_cut_short_is_rebuilt(corpus, opened, tmp_path, caplog, share):
    seconds(corpus)
    path = cache_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(len(whole) * share)])
    opened.clear()
    assert seconds(corpus) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert len(opened) == 6
    assert "cut short or damaged; it is rebuilt" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_file_with_another_number_in_it_is_rebuilt(corpus, opened, tmp_path):
    seconds(corpus)
    path = cache_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"0.3", b"9.3"))
    assert seconds(corpus)[2] == pytest.approx(0.3)


def test_other_inputs_are_another_cache_and_the_log_names_them(corpus, caplog, opened):
    seconds(corpus)
    seconds(corpus, text_column="sentence")
    assert "no cache is used, because text_column is 'sentence' and was 'text'" in caplog.text
    assert len(opened) == 12


def test_bounds_are_no_inputs(corpus, opened):
    seconds(corpus)
    seconds(corpus, max_duration_in_seconds=0.3, on_bad="fail", num_workers=0)
    assert len(opened) == 6


@pytest.mark.slow
def test_workers_read_the_same(corpus, tmp_path):
    rows = [made(tmp_path, 10 + i) for i in range(600)]
    rows[300].audio.write_bytes(b"no audio")
    assert seconds(rows, num_workers=0) == seconds(rows, num_workers=3, text_column="other")


def test_a_cache_that_can_t_be_written_is_only_logged(corpus, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    assert seconds(corpus)[0] == pytest.approx(0.1)
    assert "headers are not remembered" in caplog.text


def test_names_that_are_no_unicode_are_remembered(corpus, tmp_path, opened):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(corpus[0].audio.read_bytes())
    rows = [Utterance("odd", path, "text")]
    assert seconds(rows) == seconds(rows) == pytest.approx([0.1])
    assert len(opened) == 1
    table = manifest.Manifest("train", tuple(rows))
    table.save(tmp_path / "m" / "train.jsonl")
    assert manifest.Manifest.load(tmp_path / "m" / "train.jsonl", "train") == table


def test_the_cache_s_first_line_says_what_it_was_made_from(corpus, tmp_path):
    seconds(corpus)
    first = json.loads(cache_file(tmp_path).read_text().splitlines()[0])
    assert first == {"schema": 1, "split": "train", "source": "Files", "text_column": "text"}
