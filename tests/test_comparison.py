"""Runs side by side: what differs, how sure that is, and the page."""

import json
import random
from html.parser import HTMLParser

import pytest
from rich.console import Console

from asr import comparison, metrics
from asr.cli import app
from asr.errors import ConfigError

REFERENCES = {f"s{i:03}": " ".join(random.Random(i).choices("one two three four five".split(), k=1 + i % 6)) for i in range(200)}


def run_at(path, wrong, *, references=REFERENCES, config=None, heard=None, **record):
    """Write a run that hears every `wrong`th utterance's first word as another, and return its directory."""
    path.mkdir()
    kept = {"experiment": "digits", "version": "v1", "status": "finished", "started": "2026-01-01T00:00:00+00:00", **record}
    (path / "run.json").write_text(json.dumps(kept))
    (path / "config.yaml").write_text(json.dumps({"seed": 1, "stages": ["train"], "model": {"layers": 2}, **(config or {})}))
    lines = []
    for number, (name, said) in enumerate(references.items()):
        hypothesis = (heard or {}).get(name, "x " + said.partition(" ")[2] if wrong and number % wrong == 0 else said)
        lines.append({"id": name, "reference": said, "hypothesis": hypothesis.strip(), "seconds": 1.0})
        lines[-1]["errors"] = metrics.word_errors(said, lines[-1]["hypothesis"])
    (path / "predictions.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    errors, words = sum(line["errors"] for line in lines), sum(len(line["reference"].split()) for line in lines)
    measured = {"train_loss": 0.5, "eval_runtime": 3.0, "eval_wer": errors / max(words, 1)}
    measured |= {f"eval_{key}": value for key, value in metrics.intervals(lines, ["wer"]).items()}
    (path / "metrics.json").write_text(json.dumps(measured))
    return path


@pytest.fixture
def found(tmp_path):
    a, b, c = (
        run_at(tmp_path / "a", 10),
        run_at(tmp_path / "b", 3, config={"seed": 2, "model": {"layers": 2, "dropout": 0.1}}),
        run_at(tmp_path / "c", 11, config={"resume": "auto"}),
    )
    return comparison.compare([a, b, c])


def shown(found, width=110):
    console = Console(width=width)
    with console.capture() as text:
        for table in comparison.as_tables(found):
            console.print(table)
    return text.get()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.fetched, self.tags, self.text, self.by_id, self._inside = [], [], [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside.append(dict(attrs).get("id"))
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith(("data:", "#"))]

    def handle_data(self, data):
        self.text.append(data)
        for name in {name for name in self._inside[-1:] if name}:
            self.by_id[name] = self.by_id.get(name, "") + data


def test_what_differs_in_configurations_is_named_with_every_value(found):
    assert found.keys == {"seed": [1, 2, 1], "model.dropout": [comparison.ABSENT, 0.1, comparison.ABSENT]}


def test_a_worse_run_is_told_from_one_that_only_looks_it(found):
    worse, alike = found.pairs
    assert worse.difference.is_significant()
    assert worse.verdict == "B is worse than A: more than chance explains"
    rates = [side.metrics["eval_wer"] for side in found.sides]
    assert worse.difference.difference == pytest.approx(rates[1] - rates[0])
    assert not alike.difference.is_significant()
    assert alike.verdict == "C and A don't differ by more than chance explains"
    assert (worse.num_better, worse.num_worse) == (13, 60)
    assert found.note.startswith("Each of the 2 comparisons stands alone")


def test_the_other_way_round_it_is_better(tmp_path):
    pair = comparison.compare([run_at(tmp_path / "a", 3), run_at(tmp_path / "b", 10)]).pairs[0]
    assert pair.verdict == "B is better than A: more than chance explains"
    assert pair.measured.startswith("-")
    assert pair.measured.endswith("p < 0.001")


def test_only_utterances_of_both_count_and_the_others_are_said(tmp_path):
    fewer = dict(list(REFERENCES.items())[20:]) | {"new": "one"}
    other = {name: said.upper() if name in ("s100", "s101") else said for name, said in fewer.items()}
    pair = comparison.compare([run_at(tmp_path / "a", 5), run_at(tmp_path / "b", 4, references=other)]).pairs[0]
    assert len(pair.utterances) == 178
    assert pair.left_out == [
        "20 utterances only in A",
        "1 utterances only in B",
        "2 utterances with other references (other rules for text, or other data)",
    ]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({}, "B has scored no utterance"),
        ({"new": "one"}, "they have no utterance in common"),
        ({name: said.upper() for name, said in REFERENCES.items()}, "the references of their utterances differ"),
    ],
    ids=["nothing scored", "nothing in common", "other references"],
)
def test_where_there_is_nothing_to_compare_that_is_said(tmp_path, other, why):
    found = comparison.compare([run_at(tmp_path / "a", 5), run_at(tmp_path / "b", 4, references=other)])
    assert found.pairs[0].verdict == f"B and A can't be compared: {why}"
    assert found.pairs[0].measured == ""
    assert f"can't be compared: {why}" in shown(found)
    assert why in "".join(Page(comparison.as_page(found)).text)


def test_a_run_that_failed_before_its_evaluation_is_a_column_of_dashes(tmp_path):
    failed = run_at(tmp_path / "b", 4, status="failed")
    for name in ("metrics.json", "predictions.jsonl"):
        (failed / name).unlink()
    found = comparison.compare([run_at(tmp_path / "a", 5), failed])
    assert {values[1] for values in found.metrics.values()} == {"-"}
    assert comparison.plots_of(found) == []
    assert "failed" in shown(found)
    assert "B has scored no utterance" in comparison.as_page(found)


def test_empty_references_alone_are_no_rate(tmp_path):
    said = {"a": "", "b": ""}
    pair = comparison.compare([run_at(tmp_path / "a", 0, references=said), run_at(tmp_path / "b", 1, references=said)]).pairs[0]
    assert pair.verdict.endswith("nothing is said in any utterance")


def test_metrics_stand_side_by_side_rates_first_and_the_lowest_marked(found):
    assert list(found.metrics) == ["eval_wer", "train_loss", "eval_runtime"]
    assert [value.count(" to ") for value in found.metrics["eval_wer"]] == [1, 1, 1]
    assert found.best("eval_wer") == min(range(3), key=lambda i: found.sides[i].metrics["eval_wer"])
    assert found.best("train_loss") is None


def test_the_terminal_has_it_all_in_80_columns(found):
    text = shown(found, 80)
    for part in ("model.dropout", "metrics, with 95 % intervals", "eval_wer", "B is worse than A", "p < 0.001", "over 200 utterances"):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 80


STRANGE = {"s000": "<script>alert(1)</script>", "s001": "مرحبا بالعالم", "s002": "🙂 ja"}


def test_the_page_stands_alone_and_shows_text_as_text(tmp_path):
    references = REFERENCES | STRANGE
    heard = dict.fromkeys(STRANGE, "")
    found = comparison.compare(
        [run_at(tmp_path / "a", 0, references=references), run_at(tmp_path / "b", 0, references=references, heard=heard)]
    )
    text = comparison.as_page(found)
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert 'dd dir="auto"' in text
    for said in STRANGE.values():
        assert said in "".join(page.text)
    assert page.by_id["verdict-B"].startswith("B ")
    assert text.count('<td class="more">') == 3
    assert '<s class="delete">&lt;script&gt;alert(1)&lt;/script&gt;</s>' in text


def test_utterances_that_differ_most_come_first(tmp_path):
    heard = {"s011": "", "s012": "x x x x x x x x x x"}
    found = comparison.compare([run_at(tmp_path / "a", 0), run_at(tmp_path / "b", 0, heard=heard)])
    assert [(one.id, one.more) for one in found.pairs[0].worst] == [("s012", 10), ("s011", 6)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ('{"id": "a"}', "it has no reference"),
        ('{"id": 1, "reference": "", "hypothesis": ""}', "it has no id"),
        ("[]", "it holds list, not keys"),
    ],
)
def test_a_bad_line_of_predictions_is_named(tmp_path, line, reason):
    a, b = run_at(tmp_path / "a", 5), run_at(tmp_path / "b", 5)
    with (b / "predictions.jsonl").open("a") as predictions:
        predictions.write(line + "\n")
    with pytest.raises(ConfigError, match=r"predictions\.jsonl, line 201, can\'t be read") as refused:
        comparison.compare([a, b])
    assert reason in str(refused.value)


def test_what_makes_no_comparison_is_refused(tmp_path):
    a = run_at(tmp_path / "a", 5)
    with pytest.raises(ConfigError, match="1 runs are given; name 2 to 26"):
        comparison.compare([a])
    with pytest.raises(ConfigError, match="named twice"):
        comparison.compare([a, tmp_path / "b" / ".." / "a"])
    with pytest.raises(ConfigError, match="is not a run directory"):
        comparison.compare([a, tmp_path])


def test_the_command_writes_the_page_where_it_is_asked_to(tmp_path, monkeypatch, capsys):
    run_at(tmp_path / "a", 5), run_at(tmp_path / "b", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["asr", "compare", "a", "b"])
    with pytest.raises(SystemExit) as done:
        app()
    assert done.value.code == 0
    assert capsys.readouterr().out.endswith("page: compare.html\n")
    assert 'id="verdict-B"' in (tmp_path / "compare.html").read_text()
    monkeypatch.setattr("sys.argv", ["asr", "compare", "a", "b", "--page", "nowhere/x.html"])
    with pytest.raises(SystemExit) as done:
        app()
    assert done.value.code == 2
    assert "error: --page: nowhere/x.html can't be written" in capsys.readouterr().err
