"""report.html: what it shows of a run, whatever became of the run and whatever was said in it."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import yaml
from conftest import composed, sound
from typer.testing import CliRunner

from asr import cli, experiment, run_report
from asr.errors import ConfigError
from asr.runs import Run
from asr.stops import End

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def config():
    return composed("trainer.engine=gaudi")  # as it was released


class Page(HTMLParser):
    """A page's tags, texts by the id of the element that they are in, and what would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.fetched, self.texts, self.sounds, self.open, self.classes = text, [], [], {}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.classes += (found.get("class") or "").split()
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith(("data:", "#"))]
        if tag == "audio":
            self.sounds.append(found["src"])
        if "id" in found:
            self.open.append(found["id"])

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data

    @property
    def text(self):
        return " ".join("".join(self.texts.values()).split())


def page_of(run):
    return Page(run_report.write(run).read_text())


def made(folder, config, lines=(), *, exit_code=0, error=None, metrics=None, manifest=(), history=()):
    """Write a run that has ended, and return it; lines are (id, reference, hypothesis)."""
    run = Run.create(folder / "r", config, command=["python", "launch.py"], overrides=[])
    run.finish(exit_code, error)
    if metrics:
        run.write_metrics(metrics)
    rows = [{"id": i, "reference": said, "hypothesis": heard, "seconds": 1.5, "errors": 0} for i, said, heard in lines]
    if rows:
        run.write_predictions(rows)
    for name, content in (("manifest/eval.jsonl", manifest), ("history.jsonl", history)):
        if content:
            (run.path / name).parent.mkdir(exist_ok=True)
            (run.path / name).write_text("".join(json.dumps(line) + "\n" for line in content))
    return run


@pytest.fixture
def copied(run_dir, tmp_path):
    """The finished run's directory, without what a page doesn't need."""
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("model", "checkpoints", "tensorboard"))
    return tmp_path / "run"


def test_every_run_ends_with_its_page(run_dir, finished):
    page = Page((run_dir / "report.html").read_text())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert page.fetched == []
    assert "script" not in page.tags
    assert f"{100 * metrics['eval_wer']:.2f} %" in page.texts["rates"]
    assert f"{100 * metrics['eval_cer_high']:.2f} %" in page.texts["rates"]
    assert page.tags.count("svg") == 2  # one evaluation has no curve
    for part in ("facts", "data", "by-duration", "by-words", "by-speaker", "substitutions", "deletions", "insertions", "metrics"):
        assert page.texts[part].strip(), part
    assert page.sounds
    assert "trainer.args.max_steps" in page.texts["differing"]
    assert "batches" in page.texts
    assert "not-evaluated" not in page.texts
    assert "report.html" in finished.out


def test_the_page_can_be_written_again(copied):
    before = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    done = CliRunner().invoke(cli.commands, ["report", str(copied)])
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("report.html")
    assert (copied / "report.html").read_bytes() == before


def test_the_batches_in_run_json_are_those_of_the_metrics(run_dir):
    batches = json.loads((run_dir / "run.json").read_text())["batches"]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert sum(shape["batches"] for shape in batches["train"]) == 6
    for phase in ("train", "eval"):
        assert len(batches[phase]) == metrics[f"num_{phase}_shapes"]
        padded = [shape["batches"] * shape["rows"] * shape["length"] for shape in batches[phase]]
        real = sum(shape["padding_efficiency"] * size for shape, size in zip(batches[phase], padded, strict=True))
        assert real / sum(padded) == pytest.approx(metrics[f"{phase}_padding_efficiency"], abs=1e-3)


def test_a_run_that_failed_before_its_first_evaluation_says_so(tmp_path, config):
    run = made(tmp_path, config, exit_code=3, error="a.wav is <bad>", history=[{"loss": 3.0, "step": 1}, {"loss": 2.0, "step": 2}])
    page = page_of(run)
    assert "failed (exit code 3)" in page.raw
    assert page.texts["error"].startswith("a.wav is <bad>")
    assert "before its first evaluation" in page.texts["not-evaluated"]
    assert page.tags.count("svg") == 1
    assert "worst" not in page.texts


@pytest.mark.parametrize(
    ("stages", "history", "said"),
    [
        (["train", "evaluate"], [{"eval_wer": 0.5, "step": 4}], "the curves have what was measured on the way"),
        (["prepare"], [], "wasn't asked to evaluate"),
    ],
)
def test_why_there_is_no_evaluation(tmp_path, config, stages, history, said):
    run = made(tmp_path, {**config, "stages": stages}, history=history)
    assert said in page_of(run).texts["not-evaluated"]


def test_whatever_was_said_is_text(tmp_path, config):
    lines = [
        ("a<i>", "", "uh huh"),
        ("b", "שלום עולם", "שלום עולמות"),
        ("c", "👋🏽 hello", "hello 🌍"),
        ("d", "<script>alert(1)</script>", '<img src=http://planted.example onerror="alert(1)">'),
        ("e\u202e", "", ""),
    ]
    page = page_of(made(tmp_path, config, lines, metrics={"eval_wer": 1.0}))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "i" not in page.tags
    assert page.fetched == []
    for word in ("<script>alert(1)</script>", "עולמות", "👋🏽", "🌍", "uh"):
        assert word in page.text, word
    assert page.raw.count('<div class="aligned" dir="auto">') == 4
    assert {"equal", "substitute", "insert"} <= set(page.classes)
    assert "none" in page.texts["by-words"]
    assert "5 utterances of 5 words, 1 without an error" in page.text
    assert "default-src 'none'" in page.raw  # were any of it a script, it wouldn't run


def test_references_that_are_all_empty(tmp_path, config):
    page = page_of(made(tmp_path, config, [("a", "", "x"), ("b", "", "")], metrics={"eval_wer": 1.0}))
    assert "100.00 %" in page.texts["rates"]
    assert "nan" not in page.texts["by-duration"] + page.texts["by-words"]


def test_no_errors_at_all(tmp_path, config):
    page = page_of(made(tmp_path, config, [("a", "one", "one")], metrics={"eval_wer": 0.0}))
    assert "no word was heard wrong" in page.texts["worst"]


def test_bytes_that_are_no_text_do_no_harm(tmp_path, config):
    rows = [{"id": "a", "audio": "/nowhere/\udcff.wav", "seconds": 1.0, "text": "x", "speaker": "\ud800"}]
    page = page_of(made(tmp_path, config, [("a", "x", "y")], manifest=rows))
    assert "/nowhere/?.wav is not there any more" in page.text


def test_the_worst_come_first_with_what_can_be_heard(tmp_path, config):
    there = sound(tmp_path / "b.wav", 0.5)
    rows = [
        {"id": i, "audio": str(p), "seconds": 0.5, "text": "", "speaker": "anna"} for i, p in (("b", there), ("c", tmp_path / "gone.wav"))
    ]
    lines = [("a", "one two", "one"), ("b", "one two three", "x y z"), ("c", "one two three four", "x y three four"), ("d", "same", "same")]
    page = page_of(made(tmp_path, config, lines, manifest=rows))
    shown = page.texts["worst"]
    assert [shown.index(f"{n} errors in") for n in (3, 2, 1)] == sorted(shown.index(f"{n} errors in") for n in (3, 2, 1))
    assert len(page.sounds) == 1
    assert f"{tmp_path / 'gone.wav'} is not there any more" in shown
    assert "the run's manifest doesn't say where its audio lies" in shown
    assert "same" not in shown
    assert "anna" in page.texts["by-speaker"]


def test_a_model_that_repeats_itself_does_not_fill_the_page(tmp_path, config):
    lines = [(f"u{i}", "one two", "la " * 2_000 + "字" * 100_000) for i in range(10)]
    page = page_of(made(tmp_path, config, lines))
    assert len(page.raw) < 500_000
    assert "and 1851 words more" in page.text


def test_2600_utterances_take_little_room(tmp_path, config):
    noise = sound(tmp_path / "n.wav", 16)
    lines = [(f"u{i}", " ".join(f"w{i * j % 997}" for j in range(20)), " ".join(f"w{i * j % 991}" for j in range(20))) for i in range(2600)]
    rows = [{"id": name, "audio": str(noise), "seconds": 16.0, "text": "", "speaker": f"s{i % 40}"} for i, (name, _, _) in enumerate(lines)]
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4} for step in range(1, 20_000)]
    page = page_of(made(tmp_path, config, lines, manifest=rows, history=history))
    assert len(page.raw) < 4_000_000
    assert len(page.sounds) == run_report.MOST_WORST


def test_curves_have_a_line_for_each_of_training_and_evaluation():
    events = [
        {"step": s, "loss": 30.0 / s**2, "learning_rate": 1e-4, **({"eval_loss": 9.0, "eval_wer": 0.5} if s % 2 else {})}
        for s in range(1, 9)
    ]
    drawn = [ElementTree.fromstring(plot) for plot in run_report.curves(events)]
    texts = [{node.text for node in plot.iter(f"{SVG}text")} for plot in drawn]
    assert [plot.get("aria-label") for plot in drawn] == ["Loss", "Learning rate", "Error rates"]
    assert {"training", "evaluation", "step"} <= texts[0]
    assert "%" in texts[2]
    assert ["10^{" in plot for plot in run_report.curves(events)] == [True, False, False]  # a loss that falls far has a logarithmic axis
    assert run_report.curves([{"step": 1, "loss": 1.0}]) == []


def test_long_curves_keep_their_ends():
    steps, values = run_report._thinned((list(range(10_001)), [float(i) for i in range(10_001)]))
    assert len(steps) <= run_report.MOST_POINTS + 1
    assert (steps[0], steps[-1], values[-1]) == (0, 10_000, 10_000.0)


def test_what_differs_from_the_release_is_shown(config):
    assert run_report.differing(config) == []
    changed = {
        **config,
        "seed": 7,
        "resume": "auto",
        "trainer": {**config["trainer"], "args": {**config["trainer"]["args"], "max_steps": 3}},
    }
    assert {key: now for key, _, now in run_report.differing(changed)} == {"seed": "7", "trainer.args.max_steps": "3"}
    assert run_report.differing({**config, "experiment_version": "v99"}) is None


def test_greedy_decoding_stands_beside_another_decoder_s(tmp_path, config):
    run = made(tmp_path, config, metrics={"eval_wer": 0.1, "eval_wer_low": 0.08, "eval_wer_high": 0.12, "eval_wer_greedy": 0.2})
    assert run_report.rates(run) == [("WER", "10.00 %", "8.00 % to 12.00 %"), ("WER, decoded greedily", "20.00 %", "-")]


def test_a_run_from_before_intervals_has_them_worked_out(tmp_path, config):
    run = made(tmp_path, config, [(f"u{i}", "one two", "one x" if i % 2 else "one two") for i in range(40)], metrics={"eval_wer": 0.25})
    ((_, rate, interval),) = run_report.rates(run)
    low, high = (float(part.split()[0]) for part in interval.split(" to "))
    assert low < float(rate.split()[0]) < high


def test_the_match_error_rate_is_jiwer_s(tmp_path, config):
    import jiwer

    said = [("a", "one two three", "one too three four"), ("b", "", "uh"), ("c", "six", "six")]
    evaluated = run_report.evaluation(made(tmp_path, config, said))
    name, rate, interval = evaluated.match_errors
    whole = jiwer.process_words([r for _, r, _ in said if r], [h for _, r, h in said if r])
    errors = whole.substitutions + whole.deletions + whole.insertions + 1  # jiwer takes no empty reference: the word made up there
    assert (name, rate) == ("MER", f"{100 * errors / (whole.hits + errors):.2f} %")
    assert " to " in interval
    assert run_report._with_mer([("MER", "1 %", "-")], evaluated) == [("MER", "1 %", "-")]


def test_a_report_that_fails_spoils_no_run(tmp_path, config, monkeypatch, caplog):
    monkeypatch.setattr(run_report, "write", lambda run: 1 / 0)
    run = Run.create(tmp_path / "r", config, command=[], overrides=[])
    assert experiment.guarded(run, End) == 0
    assert json.loads((run.path / "run.json").read_text())["status"] == "finished"
    (warning,) = [line for line in caplog.records if line.levelname == "WARNING"]
    assert "report.html can't be written (ZeroDivisionError" in warning.getMessage()


@pytest.mark.parametrize("end", [End(3, "bad data"), End(1, "unexpected"), KeyboardInterrupt])
def test_a_run_that_ends_badly_has_a_page_too(tmp_path, config, end):
    def story():
        if isinstance(end, End):
            return end
        raise end

    run = Run.create(tmp_path / "r", config, command=[], overrides=[])
    if isinstance(end, End):
        assert experiment.guarded(run, story) == end.exit_code
    else:
        with pytest.raises(KeyboardInterrupt):
            experiment.guarded(run, story)
    text = (run.path / "report.html").read_text()
    assert "before its first evaluation" in text
    assert "failed" in text


@pytest.mark.parametrize(("status", "rehearsal", "why"), [("dry_run", False, "nothing was run"), ("finished", True, "asr show")])
def test_what_trained_nothing_has_no_page(tmp_path, config, status, rehearsal, why):
    run = made(tmp_path, config)
    run.save(status=status, **({"rehearsal": True} if rehearsal else {}))
    with pytest.raises(ConfigError, match=why):
        run_report.write(run)


@pytest.mark.parametrize("name", ["predictions.jsonl", "history.jsonl", "manifest/eval.jsonl", "config.yaml"])
def test_a_damaged_file_is_named(copied, name):
    path = copied / name
    path.write_text('{"id": 1\n' if name != "config.yaml" else yaml.safe_dump([1]))
    with pytest.raises(ConfigError, match=name.rpartition("/")[2].replace(".", r"\.")):
        run_report.write(Run.load(copied))
