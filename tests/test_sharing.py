"""Files that jobs of a sweep have in common: made once, linked, and whole."""

import json
import os
import subprocess
import sys

import pytest

from asr import runs, sharing
from asr.sharing import Shared


def prepared(folder):
    (folder / "manifest").mkdir(parents=True)
    (folder / "manifest" / "train.jsonl").write_text("1\n")
    (folder / "vocab.json").write_text("{}")
    return folder


def test_the_second_takes_what_the_first_has_put(tmp_path):
    first, second = prepared(tmp_path / "0"), tmp_path / "1"
    second.mkdir()
    with Shared(tmp_path / "prepared", "k") as place:
        assert place.facts is None
        place.put(first, ["manifest", "vocab.json", "tokenizer"], {"size": 3})
    with Shared(tmp_path / "prepared", "k") as place:
        assert place.facts == {"size": 3}
        place.take(second)
    assert (second / "manifest" / "train.jsonl").read_text() == "1\n"
    assert os.path.samefile(second / "vocab.json", first / "vocab.json"), "a link, not a copy"
    runs.write_text(second / "vocab.json", '{"a": 1}')
    assert (first / "vocab.json").read_text() == "{}", "a run's file that changes is its own"


def test_other_names_are_other_files(tmp_path):
    with Shared(tmp_path / "p", "a") as place:
        place.put(prepared(tmp_path / "0"), ["vocab.json"], {})
    with Shared(tmp_path / "p", "b") as place:
        assert place.facts is None


def test_one_that_was_killed_while_it_put_has_put_nothing(tmp_path):
    with pytest.raises(KeyError), Shared(tmp_path / "p", "k") as place:
        sharing._copy(prepared(tmp_path / "0") / "manifest", place.folder / "manifest")
        raise KeyError
    with Shared(tmp_path / "p", "k") as place:
        assert place.facts is None
        place.put(tmp_path / "0", ["manifest"], {"n": 1})
    assert json.loads((tmp_path / "p" / "k" / "facts.json").read_text()) == {"n": 1}


def test_another_file_system_gets_copies(tmp_path, monkeypatch):
    def refuse(*_paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "1").mkdir()
    with Shared(tmp_path / "p", "k") as place:
        place.put(prepared(tmp_path / "0"), ["manifest"], {})
        place.take(tmp_path / "1")
    assert (tmp_path / "1" / "manifest" / "train.jsonl").read_text() == "1\n"


def test_others_wait_while_one_makes_it(tmp_path):
    """Two processes: the second sees what the first has put, not that there is nothing yet."""
    code = "import sys, pathlib\nfrom asr.sharing import Shared\nwith Shared(pathlib.Path(sys.argv[1]), 'k') as place: print(place.facts)"
    with Shared(tmp_path / "p", "k") as place:
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p")], cwd=runs.CODE, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1.5)
        place.put(prepared(tmp_path / "0"), ["manifest"], {"n": 7})
    assert other.communicate(timeout=30)[0].strip() == "{'n': 7}"
