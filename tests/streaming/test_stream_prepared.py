"""What the parent writes of a streamed run before it starts, and what of it is refused."""

import io
import json
import pickle

import pytest
from conftest import ENGINE, composed
from rich.console import Console
from shards_made import parquet, tar

from asr import preparing, report
from asr.errors import DataError
from asr.pipeline import Pipeline
from asr.runs import Run
from asr.streaming import shards as room
from asr.streaming.dataset import FORMATS
from asr.streaming.plans import StreamPlan
from asr.streaming.shards import Ref, Shards


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(room, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def prepared(tmp_path):
    """Return a function that prepares a run over tmp_path/corpus."""

    def prepare(source, *overrides):
        given = (f"dataset={source}", f"dataset.root={tmp_path / 'corpus'}", "dataset.streaming=true", "trainer.args.max_steps=5")
        config = composed(*given, *ENGINE, *overrides)
        run = Run.create(tmp_path / f"run{len(list(tmp_path.glob('run*')))}", config, command=[], overrides=[])
        pipeline = Pipeline.of(config)
        pipeline.check_compatible()
        preparing.prepare(pipeline, run)
        return run

    return prepare


def shown(run) -> str:
    with io.StringIO() as out:
        Console(file=out, width=300).print(report.summary(run))
        return out.getvalue()


@pytest.fixture
def corpus(request, tmp_path):
    source = getattr(request, "param", "webdataset")
    make = {"hub": parquet, "webdataset": tar}[source]
    make(make(tmp_path / "corpus", range(40)), range(100, 104), split="test", shards=1)
    return source


both = pytest.mark.parametrize("corpus", ["hub", "webdataset"], indirect=True)


@both
def test_shards_plan_and_sample_are_written(corpus, prepared):
    run = prepared(corpus)
    splits = run.record["dataset"]["splits"]
    kept = splits["train"]["utterances"]
    assert kept + splits["train"]["left_out"] == 40
    units = {"hub": 10, "webdataset": 2}[corpus]
    assert splits["train"]["streamed"] == {"shards": 2, "units": units, "utterances": 40, "sampled": False}
    assert "streamed" not in splits["eval"]
    shards = Shards.load(preparing.units_path(run), FORMATS)
    assert len(shards.units) == splits["train"]["streamed"]["units"]
    plan = StreamPlan.load(preparing.plan_path(run))
    assert 1 < len(plan.shapes) <= 8
    about = json.loads(preparing.plan_path(run).read_text())
    assert about["made_from"].startswith(f"{kept} utterances of ")
    assert "one two" not in json.loads((run.path / "vocab.json").read_text())
    assert len(preparing.manifest_path(run, "train").read_text().splitlines()) == kept


@both
def test_a_sample_bounds_what_is_looked_at(corpus, prepared):
    run = prepared(corpus, "dataset.sample_utterances=10")
    splits = run.record["dataset"]["splits"]
    assert splits["train"]["utterances"] + splits["train"]["left_out"] == 10
    assert "(train, a sample of about " in shown(run)
    assert splits["train"]["streamed"]["utterances"] == (40 if corpus == "hub" else pytest.approx(40, rel=0.3))


def test_a_plan_of_an_earlier_run(corpus, prepared):
    earlier = prepared(corpus, "dataset.sample_utterances=20", "batching.max_shapes=3")
    path = preparing.plan_path(earlier)
    later = prepared(corpus, "dataset.sample_utterances=9", f"batching.plan_file={path}")
    assert StreamPlan.load(preparing.plan_path(later)).shapes == StreamPlan.load(path).shapes


def test_a_corpus_of_less_than_a_batch(corpus, prepared):
    with pytest.raises(DataError, match=r"utterances make no batch of 64: lower trainer\.args\.per_device_train_batch_size"):
        prepared(corpus, "trainer.args.per_device_train_batch_size=64")


def test_a_rehearsal_takes_a_copy_of_the_sample(corpus, prepared):
    run = prepared(corpus, "rehearse=true", "dataset.sample_utterances=12")
    split = run.record["dataset"]["splits"]["train"]
    assert split["utterances"] + split["left_out"] == 12
    assert "streamed" not in split


def test_no_transcript_at_all(tmp_path, prepared):
    tar(tar(tmp_path / "corpus", range(10), transcript=lambda n: {}), range(10), split="test", shards=1)
    with pytest.raises(
        DataError, match=r"no utterance is left \(10 no transcript or no audio; the first: .* there is no transcript: neither"
    ):
        prepared("webdataset")


def test_a_loader_s_worker_can_be_sent_the_rules(corpus, prepared):
    run = prepared(corpus)
    pipeline = Pipeline.of(run.config)
    rules = preparing.stream_rules(pipeline, pipeline.tokenizer(run.path))
    sent = pickle.loads(pickle.dumps(rules))
    shards = Shards.load(preparing.units_path(run), FORMATS)
    for sample in shards.samples(Ref(0, 0)):
        assert sent(sample, "x.tar", 0) == rules(sample, "x.tar", 0)
