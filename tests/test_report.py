import io

from rich.console import Console

from asr.report import data_table, listing, rate_text, runs_under, summary
from asr.runs import Run


def shown(table, width=160):
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


def test_the_summary_has_what_people_look_for(run_dir):
    text = shown(summary(Run.load(run_dir)))
    for word in ("spoken_digits_ctc v1: finished", "WER", "CER", "loss", "s of audio a second", "24 utterances (train)", "a run"):
        assert word in text, word


def test_error_rates_are_shown_with_their_intervals_where_there_are_any():
    metrics = {"eval_wer": 0.1234, "eval_wer_low": 0.1, "eval_wer_high": 0.15, "eval_cer": 0.5, "eval_cer_low": None}
    assert rate_text(metrics, "eval_wer") == "12.3 % (95 %: 10.0 to 15.0)"
    assert rate_text(metrics, "eval_cer") == "50.0 %"


def test_the_summary_of_a_run_has_the_interval(run_dir):
    run = Run.load(run_dir)
    low, high = (100 * run.metrics[f"eval_wer_{end}"] for end in ("low", "high"))
    assert low <= 100 * run.metrics["eval_wer"] <= high
    assert f"(95 %: {low:.1f} to {high:.1f})" in shown(summary(run))


def test_a_run_that_failed_early_has_a_summary_too(tmp_path):
    from conftest import composed

    run = Run.create(tmp_path / "r", composed(), command=[], overrides=[])
    run.finish(3, "a.wav is bad")
    text = shown(summary(run))
    assert "failed" in text
    assert "a.wav is bad" in text


def test_the_listing_has_a_line_a_run(run_dir):
    runs = runs_under(run_dir.parent)
    assert [run.path for run in runs] == [run_dir]
    text = shown(listing(runs), width=400)
    assert "finished" in text
    assert "seed=7" in text


def test_the_data_is_shown_with_what_was_left_out(run_dir):
    run = Run.load(run_dir)
    run.record["dataset"]["splits"]["train"] |= {"left_out": 3, "left_out_because": {"unreadable audio": 2, "duplicate id": 1}}
    text = shown(data_table(run))
    for line in (
        "train",
        "test (eval)",
        "utterances",
        "speakers",
        "seconds, median",
        "labels, max",
        "unreadable audio",
        "duplicate id",
    ):
        assert line in text, line
