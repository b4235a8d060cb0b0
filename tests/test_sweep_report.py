"""What a sweep shows at its end: ranking, csv, page, plots."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from rich.console import Console

from asr import sweep_report
from asr.sweeps import Sweep

SHARED = ["dataset.max_train_samples=100", "+sweep=lr_batch", "hydra.sweep.dir=s"]


def sweep_of(tmp_path, jobs, **record) -> Sweep:
    """Write a sweep of (overrides, WER or exit code) and return it."""
    folder = tmp_path / "s"
    (folder / "jobs").mkdir(parents=True)
    kept = {"status": "finished", "error": None, "started": "2026-01-01", "finished": "2026-01-02", "sessions": 1, "git": None}
    kept |= {"packages": {"torch": "2"}, "command": ["python", "launch.py"], "overrides": [], **record}
    (folder / "sweep.json").write_text(json.dumps(kept))
    for number, (overrides, wer) in enumerate(jobs):
        failed = isinstance(wer, int)
        job = {"number": number, "overrides": [*overrides, *SHARED], "run_dir": str(number), "status": "failed" if failed else "finished"}
        job |= {"exit_code": wer if failed else 0, "error": "<b>no</b>" if failed else None, "value": None if failed else wer}
        (folder / "jobs" / f"{number}.json").write_text(json.dumps(job))
        (folder / str(number)).mkdir()
        if not failed:
            metrics = {"eval_wer": wer, "eval_cer": None if wer is None else wer / 2, "eval_loss": 1.0, "train_runtime": 3.0}
            (folder / str(number) / "metrics.json").write_text(json.dumps(metrics))
    return Sweep.load(folder)


def grid(wers):
    rates, sizes = ("1e-3", "2e-3", "4e-3"), ("8", "16")
    words = [[f"trainer.args.learning_rate={r}", f"trainer.args.per_device_train_batch_size={s}"] for r in rates for s in sizes]
    return list(zip(words, wers, strict=True))


@pytest.fixture
def results(tmp_path):
    return sweep_report.results_of(sweep_of(tmp_path, grid([0.5, 0.6, 0.2, 0.3, 3, None])))


class Page(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith(("data:", "#"))]

    def handle_data(self, data):
        self.text.append(data)


def test_jobs_are_told_apart_by_what_varies_and_ranked(results):
    assert results.keys == ["trainer.args.learning_rate", "trainer.args.per_device_train_batch_size"]
    assert [row.job.number for row in results.ranked] == [2, 3, 0, 1, 4, 5]
    assert results.best.job.number == 2
    assert [row.job.number for row in results.failed] == [4]


def test_the_best_command_is_one_run(results):
    command = results.command_of(results.best)
    assert command == (
        "python launch.py trainer.args.learning_rate=2e-3 trainer.args.per_device_train_batch_size=8 dataset.max_train_samples=100"
    )


def test_a_value_with_spaces_is_quoted_to_be_pasted(tmp_path):
    sweep = sweep_of(tmp_path, [(["text.remove=',? '", "seed=1"], 0.1), (["text.remove=',? '", "seed=2"], 0.2)])
    results = sweep_report.results_of(sweep)
    import shlex

    assert shlex.split(results.command_of(results.best))[2:4] == ["text.remove=',? '", "seed=1"]


def test_the_csv_has_whole_keys_and_unrounded_numbers(results):
    rows = list(csv.DictReader(sweep_report.as_csv(results).splitlines()))
    assert [row["job"] for row in rows] == list("012345")
    assert (rows[0]["trainer.args.learning_rate"], float(rows[0]["eval_wer"]), rows[0]["eval_cer"]) == ("1e-3", 0.5, "0.25")
    assert (rows[4]["status"], rows[4]["exit_code"], rows[4]["eval_wer"], rows[4]["error"]) == ("failed", "3", "", "<b>no</b>")


def test_the_table_has_the_best_first(results):
    console = Console(width=120)
    with console.capture() as shown:
        console.print(sweep_report.as_table(results))
    lines = [line for line in shown.get().splitlines() if "│" in line]
    assert lines[0].split("│")[1:4] == ["   2 ", " 20.00 % ", "          2e-3 "]
    assert "failed (3)" in lines[-2]


def test_the_page_stands_alone_and_shows_text_as_text(results):
    text = sweep_report.as_page(results)
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "failed (3): <b>no</b>" in "".join(page.text)
    assert page.tags.count("svg") == 1
    assert sum(tag == "tr" for tag in page.tags) == 7
    assert results.command_of(results.best) in "".join(page.text)


def test_the_plot_has_a_line_for_each_batch_size(results):
    (first,) = sweep_report.plots_of(results)
    drawn = ElementTree.fromstring(first)
    texts = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("learning_rate", "WER, %", "8", "16", "best", "0.001", "0.002"):
        assert wanted in texts
    assert "#010203" not in first
    assert "currentColor" in first


def test_names_are_plotted_side_by_side(tmp_path):
    models = [([f"model={name}", f"seed={seed}"], wer) for name, seed, wer in (("a", 1, 0.3), ("b", 1, 0.2), ("a", 2, 0.4), ("b", 2, 0.1))]
    results = sweep_report.results_of(sweep_of(tmp_path, models))
    texts = [node.text for node in ElementTree.fromstring(sweep_report.plots_of(results)[0]).iter("{http://www.w3.org/2000/svg}text")]
    assert "model" in texts
    assert "seed" in texts


def test_a_long_search_shows_how_it_got_better(tmp_path):
    search = [([f"trainer.args.learning_rate={(i + 1) / 1000}"], 0.9 - i / 20) for i in range(9)]
    _, history = sweep_report.plots_of(sweep_report.results_of(sweep_of(tmp_path, search)))
    assert "best so far" in history


@pytest.mark.parametrize(
    "wers", [[3, 3], [None, None], [float("inf"), float("nan")], [0.5, 3]], ids=["all failed", "no WER", "not finite", "one left"]
)
def test_whatever_came_of_the_jobs_there_is_a_page(tmp_path, wers):
    sweep = sweep_of(tmp_path, [([f"seed={i}"], wer) for i, wer in enumerate(wers)], status="failed", error="job 1")
    results = sweep_report.results_of(sweep)
    assert "asr resume" in sweep_report.as_page(results)
    assert (results.best is None) == (wers != [0.5, 3])


def test_a_killed_job_s_end_is_read_from_its_run(tmp_path, run_dir):
    sweep = sweep_of(tmp_path, grid([0.5, 0.6, 0.2, 0.3, 0.3, 0.3]))
    path = sweep.path / "jobs" / "1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running", "exit_code": None, "value": None}))
    record = json.loads((run_dir / "run.json").read_text())
    (sweep.path / "1" / "run.json").write_text(json.dumps(record | {"status": "failed", "exit_code": 137, "error": "killed"}))
    assert [row.job.exit_code for row in sweep_report.results_of(sweep).failed] == [137]
    (sweep.path / "1" / "run.json").write_text("{")
    assert sweep_report.results_of(sweep).failed == []


def test_a_single_job_needs_no_page(tmp_path, capsys):
    sweep_report.show_end(sweep_of(tmp_path, grid([0.5, 0.6, 0.2, 0.3, 0.3, 0.3])[:1]))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "s" / "sweep.html").exists()
