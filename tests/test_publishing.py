"""A model on the hub: pushed to a server on this machine by the hub's real client, and what is refused before anything is trained."""

import json
import os
import subprocess
import sys

import pytest
from conftest import FINISHED, ROOT, composed, launch_command
from fakes import hub as fake

from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.rehearsal import start as rehearsal
from asr.trust import config_of

OWNER = {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}}
USERS = {
    "a-writing-token": OWNER,
    "a-reading-token": OWNER | {"auth": {"accessToken": {"role": "read"}}},
    "a-fine-grained-token": {"name": "me", "auth": {"accessToken": {"role": "fineGrained"}}},
}
NAMED = ["publish=true", "+trainer.args.hub_model_id=me/tiny"]


def of_hub(url, home, token="a-writing-token"):
    offline = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return {**os.environ, **offline, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": token, "PYTHONPATH": str(ROOT)}


def python(code, environment):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (["dry_run=true"], "publish", "is not for dry_run=true"),
        (["rehearse=true"], "publish", "is not for rehearse=true"),
        (["stages=[evaluate]", "model.name_or_path=x/y"], "publish", "trains no model to push"),
        (["trainer.args.hub_model_id=null"], "trainer.args.hub_model_id", "is missing: name the repository"),
        (["trainer.args.hub_model_id=a/b/c"], "trainer.args.hub_model_id", "can't name a repository of the hub"),
    ],
)
def test_what_has_nothing_to_publish_or_nowhere_is_refused(overrides, key, message):
    with pytest.raises(ConfigError, match=f"^{key}: .*{message}"):
        Pipeline.of(composed(*NAMED, *overrides))


def test_a_rehearsal_of_what_publishes_is_refused_too():
    with pytest.raises(ConfigError, match=r"^publish: is not for rehearse=true"):
        rehearsal.check(composed(*NAMED, "rehearse=true"))


def test_without_the_network_or_a_token_it_is_refused_before_anything_is_trained(monkeypatch):
    pipeline = Pipeline.of(composed(*NAMED))
    with pytest.raises(ConfigError, match=r"^publish: needs the hub, and HF_HUB_OFFLINE is set: .*asr publish RUN"):
        pipeline.check_host()
    monkeypatch.setattr("asr.hub.is_offline", lambda: False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"^publish: needs a token of the hub that may write: set HF_TOKEN"):
        pipeline.check_host()


CHECKS = (
    "import os; from asr import publishing; from asr.errors import ConfigError\n"
    "for token, name in {cases}:\n"
    "    os.environ['HF_TOKEN'] = token\n"
    "    try: publishing.check(name); print('fine')\n"
    "    except ConfigError as error: print(error)\n"
)


def test_the_hub_is_asked_whether_the_token_may_write_there(tmp_path):
    cases = {
        ("a-writing-token", "me/tiny"): "fine",
        ("a-writing-token", "us/tiny"): "fine",
        ("a-writing-token", "tiny"): "fine",
        ("a-fine-grained-token", "me/tiny"): "fine",
        ("a-reading-token", "me/tiny"): "publish: the token in HF_TOKEN may only read: make one that may write",
        (
            "a-writing-token",
            "them/tiny",
        ): "trainer.args.hub_model_id: them/tiny: the token in HF_TOKEN is of me, who isn't in them; it may write to",
        ("an-unknown-token", "me/tiny"): "publish: the hub doesn't know the token in HF_TOKEN",
    }
    with fake.taking(USERS) as hub:
        said = python(CHECKS.format(cases=list(cases)), of_hub(hub.url, tmp_path))
    for line, expected in zip(said, cases.values(), strict=True):
        assert line.startswith(expected)
        assert "-token" not in line
    assert hub.created == []


@pytest.mark.parametrize(("kind", "reason"), [(fake.closed, "the connection is refused"), (lambda: fake.answering(503), "it answers 503")])
def test_a_hub_that_is_not_there_is_one_error(tmp_path, kind, reason):
    with kind() as dead:
        (said,) = python(CHECKS.format(cases=[("a-writing-token", "me/tiny")]), of_hub(dead.url, tmp_path))
    assert said.startswith("publish: http://127.0.0.1")
    assert f"can't be asked: {reason}. Check the network, or leave it false and publish later: asr publish RUN." in said


@pytest.fixture
def done_run(run_dir, tmp_path):
    """A copy of a finished run with a small file for its weights."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "manifest"))
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    return folder


def asr(environment, *words):
    code = f"import sys; sys.argv = {['asr', *map(str, words)]}; from asr.cli import app; app()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def test_a_finished_run_is_published_whole_with_its_card(done_run, tmp_path):
    (done_run / "model" / "README.md").unlink()
    with fake.taking(USERS) as hub:
        done = asr(of_hub(hub.url, tmp_path / "home"), "publish", done_run, "--to", "us/tiny", "--private")
    assert (done.returncode, done.stdout) == (0, f"{hub.url}/us/tiny\n"), done.stderr
    (asked,) = hub.created
    assert (asked["name"], asked["organization"]) == ("tiny", "us")
    assert asked.get("private") is True or asked.get("visibility") == "private"  # huggingface_hub 1 has the latter
    assert set(hub.taken) == {path.name for path in (done_run / "model").iterdir()}
    assert hub.taken["model.safetensors"] == b"weights"
    assert hub.taken["README.md"].startswith(b"---\nlibrary_name: transformers\n")
    published = json.loads((done_run / "run.json").read_text())["published"]
    assert (published["repository"], published["url"], published["commit"]) == ("us/tiny", f"{hub.url}/us/tiny", fake.COMMIT)
    for path in done_run.rglob("*.json*"):
        assert "a-writing-token" not in path.read_text()


def test_a_push_that_the_hub_refuses_is_one_line_that_says_how_to_try_again(done_run, tmp_path):
    with fake.taking(USERS, status=403) as hub:
        done = asr(of_hub(hub.url, tmp_path / "home"), "publish", done_run, "--to", "me/tiny")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: me/tiny can't be pushed to {hub.url}: the token in HF_TOKEN may not write there. The run is whole; "
        f"try again: asr publish {done_run}"
    )
    record = json.loads((done_run / "run.json").read_text())
    assert (record["status"], record["published"]["error"]) == ("finished", "the token in HF_TOKEN may not write there")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "failed"}, "is failed: only a run that has finished is published"),
        ({"rehearsal": True}, "is a rehearsal"),
        ({}, "--to: is missing"),
    ],
)
def test_what_is_no_finished_run_or_has_no_name_is_not_published(done_run, change, message):
    from asr import publishing
    from asr.runs import Run

    run = Run.load(done_run)
    run.record |= change
    with pytest.raises(ConfigError, match=message):
        publishing.publish_later(run, None)


def test_a_stranger_s_run_does_not_publish_with_your_token(done_run):
    from asr.runs import Run

    config = done_run / "config.yaml"
    config.write_text(config.read_text().replace("publish: false", "publish: true"))
    with pytest.raises(ConfigError, match=r"^publish: pushes a model to the hub with your token; --allow publish if you trust this run"):
        config_of(Run.load(done_run))
    assert config_of(Run.load(done_run), ["publish"])["publish"] is True


def test_jobs_of_a_sweep_do_not_overwrite_each_other_s_model(launch, tmp_path):
    done = launch(tmp_path, "-m", *NAMED, "seed=1,2")
    assert done.code == 2
    assert done.err.startswith("error: publish: each job would overwrite the model of the one before; publish the best: asr publish RUN.")
    assert done.outputs == []


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 500])
def test_a_run_is_published_at_its_end_and_stays_finished_where_that_fails(tmp_path, status):
    with fake.taking(USERS, status=status) as hub:
        asked = launch_command(*FINISHED, *NAMED, "hydra.run.dir=run")
        done = subprocess.run(asked, cwd=tmp_path, env=of_hub(hub.url, tmp_path / "home"), capture_output=True, text=True, timeout=240)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("finished", 0)
    assert done.returncode == (0 if status == 200 else 1), done.stderr
    assert hub.visits.index("GET /api/whoami-v2") < hub.visits.index("POST /api/repos/create")
    if status == 200:
        assert record["published"]["commit"] == fake.COMMIT
        assert "model.safetensors" in hub.taken
        assert b"model-index" in hub.taken["README.md"]
    else:
        assert "error: me/tiny can't be pushed" in done.stderr
        assert "try again: asr publish" in done.stderr
