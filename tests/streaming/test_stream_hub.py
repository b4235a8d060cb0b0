"""Streams from the hub: a server on this machine, asked for parts of files, which it sends, refuses or drops."""

import json
import os
import subprocess

import pytest
from conftest import launch_command
from fakes import hub as fake
from shards_made import parquet, tar, text_of
from test_hub_access import of_hub, python

READ = """
import json, sys
from asr.sources import {module}
from asr.errors import AsrError
from asr.streaming import shards as room
from asr.streaming.shards import Ref
room.PAUSE_SECONDS = 0.01
try:
    source = {module}.{kind}(path="someone/tiny", streaming=True)
    shards = source.shards("train")
    found = [sample.text for unit in range(len(shards.units)) for sample in shards.samples(Ref(unit, 0))]
    rows = [row.text for row in source.utterances("test")]
    print(json.dumps([found, rows, shards.units[0].shard]))
except AsrError as error:
    print(error.exit_code, error)
"""
PARQUET, TAR = READ.format(module="hub", kind="Hub"), READ.format(module="webdataset", kind="WebDataset")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Folders of the files of two dataset repositories, by the code that reads them."""
    made = {}
    for code, make in ((PARQUET, parquet), (TAR, tar)):
        folder = tmp_path_factory.mktemp("repository")
        made[code] = make(make(folder, range(24)), range(100, 104), split="test", shards=1)
    return made


def environment(hub, folder):
    return {**of_hub(hub.url, folder / "home"), "ASR_CACHE": str(folder / "cache"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("code", [pytest.param(PARQUET, id="parquet"), pytest.param(TAR, id="tar")])
def test_a_dataset_is_read_in_parts_that_are_dropped_and_refused_on_the_way(repositories, tmp_path, code):
    with fake.serving(repositories[code], kind="datasets", breaks_at={2: "refuses", 4: "drops", 7: "refuses"}) as good:
        done, _ = python(code, environment(good, tmp_path))
    assert done.returncode == 0, done.stderr
    found, rows, shard = json.loads(done.stdout)
    assert found == [text_of(n) for n in range(24)]
    assert rows == [text_of(n) for n in range(100, 104)]
    assert shard.startswith(f"hf://datasets/someone/tiny@{fake.COMMIT}/train-")
    assert not list((tmp_path / "home").rglob("*.parquet"))  # nothing was downloaded whole
    assert not list((tmp_path / "home").rglob("*.tar"))


@pytest.mark.slow
def test_a_connection_that_stays_away_is_one_error(repositories, tmp_path):
    with fake.serving(repositories[PARQUET], kind="datasets", breaks_at=dict.fromkeys(range(9, 99), "refuses")) as bad:
        done, _ = python(PARQUET, environment(bad, tmp_path))
    assert done.stdout.startswith("3 hf://datasets/someone/tiny@"), done.stderr
    assert "can't be read (" in done.stdout
    assert "(3 tries)" in done.stdout


@pytest.mark.slow
def test_without_the_hub_it_says_what_is_wanted(tmp_path):
    with fake.closed() as dead:
        done, _ = python(PARQUET, environment(dead, tmp_path))
        offline, _ = python(PARQUET, {**environment(dead, tmp_path), "HF_HUB_OFFLINE": "1"})
    assert done.stdout.startswith("2 path: someone/tiny can't be had: "), done.stderr
    assert "the connection is refused" in done.stdout
    assert "HF_HUB_OFFLINE is set" in offline.stdout


@pytest.mark.slow
def test_a_run_streams_from_the_hub(repositories, tmp_path):
    overrides = ["dataset=hub", "dataset.path=someone/tiny", "dataset.streaming=true", "trainer.args.max_steps=4"]
    small = ["trainer.args.per_device_train_batch_size=4", "trainer.args.dataloader_num_workers=2", "hydra.run.dir=run"]
    with fake.serving(repositories[PARQUET], kind="datasets", breaks_at={8: "drops", 12: "refuses"}) as good:
        asked = launch_command(*overrides, *small)
        where = {**os.environ, **environment(good, tmp_path)}
        done = subprocess.run(asked, cwd=tmp_path, env=where, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["dataset"]["splits"]["train"]["streamed"]["utterances"] == 24
