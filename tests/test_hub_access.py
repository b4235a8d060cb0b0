"""A hub that doesn't answer, for real: servers on this machine that are silent, gone, broken or stop half way."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from conftest import ROOT, TINY, launch_command
from fakes import hub as fake

from asr import hub

SILENT = "it doesn't answer within 5 s"
DEAD = [
    (fake.silent, SILENT),
    (fake.closed, "the connection is refused"),
    (lambda: fake.answering(500), "it answers 500"),
    (lambda: fake.answering(503), "it answers 503"),
    (fake.unknown_name, "the name no-such-host.invalid doesn't resolve"),
]
"""Ways in which a hub is dead, and how we say so."""


def of_hub(url, home):
    """The environment of a user whose hub is at a URL, and whose caches lie below `home`."""
    return {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


def python(code, environment):
    """Run Python code in a process of its own: the hub's address is read once a process."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    return done, time.monotonic() - started


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The files of a small CTC model with its tokenizer, as a hub repository has them; its weights are never read here."""
    folder = tmp_path_factory.mktemp("tiny")
    written = {
        "config.json": {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]},
        "preprocessor_config.json": {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        "tokenizer_config.json": {},
        "vocab.json": {"[PAD]": 0},
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(bytes(1 << 20))
    return folder


@pytest.mark.parametrize("ways", [DEAD[1:2], pytest.param(DEAD, marks=pytest.mark.slow)], ids=["closed", "each"])
def test_a_dead_hub_ends_a_launch_within_a_minute_with_one_error_that_says_how_to_go_on(tmp_path, ways):
    """All at once: they wait, they don't compute."""
    with ExitStack() as stack:
        begun = [
            subprocess.Popen(
                launch_command("model.name_or_path=someone/tiny", "hydra.run.dir=run"),
                cwd=tmp_path,
                env={**os.environ, **of_hub(stack.enter_context(kind()).url, tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for kind, _ in ways
        ]
        started = time.monotonic()
        said = [process.communicate(timeout=60)[0] for process in begun]
    assert time.monotonic() - started < 40
    assert [process.returncode for process in begun] == [2] * len(ways)
    for (_, reason), text in zip(ways, said, strict=True):
        assert text.startswith("error: model.name_or_path: 'someone/tiny' is neither a local folder, nor whole in the hub's cache"), text
        assert f"{reason}. " in text
        for mend in ("model.name_or_path=/a/folder with config.json and weights", "HF_HUB_OFFLINE=1 and HF_HOME=/a/cache"):
            assert mend in text
        assert text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_cached_is_taken_without_asking(repository, tmp_path):
    fake.cache(tmp_path, repository)
    code = (
        "from asr.pipeline import Pipeline; from asr import composition\n"
        "overrides = ['model.name_or_path=someone/tiny', 'vocabulary.tokenizer_name_or_path=someone/tiny', 'trainer.engine=transformers']\n"
        "pipeline = Pipeline.of(composition.to_container(composition.compose(overrides)))\n"
        "pipeline.check_reachable(); pipeline.fetch()\n"
        "import sys; assert 'torch' not in sys.modules; print(pipeline.model.files().folder())"
    )
    with fake.silent() as dead:
        done, _ = python(code, of_hub(dead.url, tmp_path))
        assert done.returncode == 0, done.stderr
        assert dead.visits == []
    assert done.stdout.strip().endswith(fake.COMMIT)


def test_a_hub_that_answers_gives_the_folder_and_then_is_not_asked_again(repository, tmp_path):
    code = "from asr import hub; print(hub.model_folder('someone/tiny', key='name_or_path'))"
    with fake.serving(repository) as good:
        done, _ = python(code, of_hub(good.url, tmp_path))
        assert done.returncode == 0, done.stderr
        asked = len(good.visits)
        again, _ = python(code, of_hub(good.url, tmp_path))
        assert len(good.visits) == asked > 0
    assert done.stdout == again.stdout
    assert {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")} == {path.name for path in repository.iterdir()}


PATIENT = "import sys; from asr import hub; from asr.errors import ConfigError; hub.PATIENCE_SECONDS = 2.0\n"


@pytest.mark.slow
def test_a_download_that_stops_half_way_is_given_up(repository, tmp_path):
    code = PATIENT + ("try: hub.model_folder('someone/tiny', key='name_or_path')\nexcept ConfigError as error: print(error)")
    with fake.serving(repository, stalls_at="model.safetensors") as stuck:
        done, seconds = python(code, of_hub(stuck.url, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "name_or_path: the weights of 'someone/tiny' is neither" in done.stdout
    assert "nothing more came for 2 s" in done.stdout
    assert seconds < 12
    assert not list((tmp_path / "hub").rglob("snapshots/*/model.safetensors"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "the repository has no such file"), ("model.safetensors", "it has no config.json and weights")],
)
def test_a_repository_without_what_is_needed_is_named(repository, tmp_path, missing, message):
    files = tmp_path / "files"
    files.mkdir()
    for path in repository.iterdir():
        if path.name != missing:
            (files / path.name).write_bytes(path.read_bytes())
    code = PATIENT + "try: hub.model_folder('someone/tiny', key='name_or_path')\nexcept ConfigError as error: print(error)"
    with fake.serving(files) as good:
        done, _ = python(code, of_hub(good.url, tmp_path))
    assert message in done.stdout, done.stderr


def test_parts_of_weights_are_all_needed(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    (tmp_path / "1.safetensors").touch()
    assert not hub.has_weights(tmp_path)
    (tmp_path / "2.safetensors").touch()
    assert hub.has_weights(tmp_path)


def test_who_computes_without_a_byte_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 1.0)

    def compute():
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            pass
        return "done"

    assert hub.patiently(compute, [tmp_path]) == "done"
    with pytest.raises(TimeoutError, match=r"nothing more came for 1 s"):
        hub.patiently(lambda: time.sleep(5), [tmp_path])
    with pytest.raises(KeyError):
        hub.patiently(lambda: {}["a"], [tmp_path])


DATASET = (
    "import sys, time; from asr.sources.hub import Hub; from asr.errors import AsrError; from asr import hub\n"
    "try: print(len(list(Hub(path='someone/tiny').utterances('train'))))\n"
    "except AsrError as error: print(error.exit_code, error)"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A dataset repository of one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("rows")
    audio = pa.array([{"bytes": b"RIFF", "path": "a.wav"}] * 3, type=pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"audio": audio, "text": list("abc")}), folder / "train.parquet")
    return folder


@pytest.mark.slow
def test_a_dataset_that_was_read_once_is_read_again_when_the_hub_is_silent(rows, tmp_path):
    with fake.serving(rows, kind="datasets") as good:
        done, _ = python(DATASET, of_hub(good.url, tmp_path))
        assert done.stdout == "3\n", done.stderr
    with fake.answering(503) as dead:
        done, seconds = python(DATASET, of_hub(dead.url, tmp_path))
        assert done.stdout == "3\n", done.stderr
        assert dead.visits == 2 * ["HEAD /"]  # a second try, in case it was a moment's weakness
    assert "it answers 503; the cache is looked through" in done.stderr
    assert seconds < 20


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reason"), DEAD)
def test_a_dataset_of_a_dead_hub_is_one_error(tmp_path, kind, reason):
    with kind() as dead:
        done, seconds = python(DATASET, of_hub(dead.url, tmp_path))
    assert done.stdout.startswith("2 path: someone/tiny can't be had: it is not in the cache, and http://")
    assert f"can't be asked: {reason}. " in done.stdout
    assert "dataset=folder dataset.root=/a/folder" in done.stdout
    assert done.stdout.count("\n") == 1
    assert seconds < 30


@pytest.mark.slow
def test_a_dataset_that_stops_half_way_is_given_up(rows, tmp_path):
    with fake.serving(rows, kind="datasets", stalls_at="train.parquet") as stuck:
        done, seconds = python(DATASET.replace("try", "hub.PATIENCE_SECONDS = 3.0\ntry"), of_hub(stuck.url, tmp_path))
    assert "2 path: someone/tiny can't be had: nothing more came for 3 s" in done.stdout, done.stderr
    assert seconds < 20


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_run_whose_model_is_cached_needs_no_hub(run_dir, tmp_path, offline):
    """All of it: tokenizer, weights, extractor, metrics."""
    fake.cache(tmp_path, run_dir / "model")
    with fake.silent() as dead:
        asked = launch_command(*TINY, "stages=[evaluate]", "model.name_or_path=someone/tiny", "hydra.run.dir=run")
        environment = {**os.environ, **of_hub(dead.url, tmp_path), "HF_HUB_OFFLINE": offline}
        done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert dead.visits == []
    scored, before = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "run", run_dir))
    assert scored["eval_wer"] == before["eval_wer"]
