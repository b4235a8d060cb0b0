"""A run's directory run again: the same numbers, or what differs; and what a stranger's directory may not do."""

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, composed
from rich.console import Console

from asr import circumstances, composition, replay, report, runs, trust
from asr.errors import ConfigError
from asr.runs import Run

PREPARES = "stages=[prepare]"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def prepared(own_cache, tmp_path_factory, digits):
    """A run that prepared its data, from a corpus that a test may change in its copy."""
    home = tmp_path_factory.mktemp("prepared")
    for split in ("train", "test"):
        (home / "corpus" / split).mkdir(parents=True)
        for utterance in list(digits.utterances(split))[:6]:
            name = utterance.id.replace("/", "_")
            shutil.copy(utterance.audio, home / "corpus" / split / f"{name}.wav")
            (home / "corpus" / split / f"{name}.txt").write_text(utterance.text)
    from asr import experiment

    config = composed("dataset=folder", f"dataset.root={home / 'corpus'}", PREPARES)
    code, run = experiment.start(config, home / "run", overrides=[PREPARES], in_child=False)
    assert code == 0
    return run.path


@pytest.fixture
def run_there(prepared, here):
    """That run and its corpus, for one test."""
    shutil.copytree(prepared.parent, here / "there")
    config = yaml.safe_load((here / "there" / "run" / "config.yaml").read_text())
    config["dataset"]["root"] = str(here / "there" / "corpus")
    (here / "there" / "run" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return here / "there" / "run"


def read(path: Path):
    return json.loads(path.read_text())


def edit(run: Path, change) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


# --- the same again ----------------------------------------------------------------------------------------------------


def test_a_replay_says_of_what_and_has_the_same_configuration_and_data(run_there):
    code, run = replay.again(run_there)
    assert code == 0
    assert run.path.parent == Path.cwd() / "outputs" / "spoken_digits_ctc"
    assert (run.path / "config.yaml").read_bytes() == (run_there / "config.yaml").read_bytes()
    of = read(run.path / "run.json")["replay_of"]
    original = read(run_there / "run.json")
    assert (of["path"], of["config_sha256"]) == (str(run_there), original["config_sha256"])
    assert [line for line in of["differences"] if not line.startswith("code:")] == ["the run has no metrics to compare with"]
    assert (run.record["dataset"]["splits"], run.record["overrides"]) == (original["dataset"]["splits"], [PREPARES])
    assert "replay of " in (run.path / "run.log").read_text()


def test_a_finished_run_has_the_same_numbers_to_the_last_bit(run_dir, here, monkeypatch):
    for name, value in {**composed()["topology"]["environment"], "PT_HPU_LAZY_MODE": "0"}.items():
        monkeypatch.setenv(name, str(value))  # a run in this process sets them: put back afterwards
    code, run = replay.again(run_dir, into=Path("again"))
    assert code == 0
    assert run.record["replay_of"]["other_metrics"] == []
    then, now = Run.load(run_dir).metrics, run.metrics
    assert then["eval_wer"] == now["eval_wer"]
    assert {key for key in then if then[key] != now[key]} <= {key for key in then if circumstances.MEASURED.search(key)}
    for file in ("predictions.jsonl", "model/model.safetensors", "config.yaml"):
        assert (run_dir / file).read_bytes() == (here / "again" / file).read_bytes(), file


def test_overrides_follow_typed_and_said(run_there):
    code, run = replay.again(run_there, ["seed=8", "trainer.args.max_steps=3"], into=Path("other"))
    assert code == 0
    assert (run.config["seed"], run.config["trainer"]["args"]["max_steps"]) == (8, 3)
    assert run.record["overrides"] == [PREPARES, "seed=8", "trainer.args.max_steps=3"]
    of = run.record["replay_of"]
    assert of["overrides"] == ["seed=8", "trainer.args.max_steps=3"]
    assert {"seed: 0 -> 8", "trainer.args.max_steps: 'absent' -> 3"} <= set(of["differences"])
    assert "other than in the run that is replayed: seed: 0 -> 8" in (run.path / "run.log").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("topology=hpu8",),
        ("experiment=common_voice_tr_ctc_streaming",),
        ("experiment=whisper_small_hi_hpu1",),
        ("experiment=librispeech_wav2vec2_bart_base_8",),
    ],
)
def test_a_configuration_without_overrides_stays_as_it_is(overrides):
    config = composed(*overrides)
    assert composition.overridden(config, []) == config


REFUSED = {
    "model.layerdop=0.1": "model.layerdop: there is no such key. Did you mean model.layerdrop?",
    "trainer.args.learning_rat=1": "Did you mean learning_rate?",
    "seed=fast": "seed: 'fast' is not of type int",
    "trainer.args.per_device_train_batch_size=0": "trainer.args.per_device_train_batch_size: 0 is out of range",
    "model=wav2vec2_tiny": "model: chooses an option of conf/",
    "experiment=spoken_digits_ctc/v1": "experiment: chooses an option of conf/",
    "topology@x=cpu2": "chooses an option of conf/",
    "seed=1,2": "seed: has several values, and this is one run",
    "hydra.run.dir=x": "hydra.run.dir: is Hydra's, which has no part in this; --into FOLDER says",
    "resume=auto": "resume: is not for a replay",
    "rehearse=true": "rehearse: is not for a replay",
    "seed='": "can't be parsed",
    "model._target_=os.system": "model._target_: 'os.system' is not a class of asr.*",
    "~model": "model: chooses an option of conf/",
    "~model._target_": "model._target_: CTCModelSchema (DictConfig) does not support deletion",
}


@pytest.mark.parametrize("override", REFUSED)
def test_an_override_that_can_t_be_is_refused_and_nothing_written(run_there, here, override):
    with pytest.raises(ConfigError) as refused:
        replay.again(run_there, [override])
    assert REFUSED[override] in str(refused.value)
    assert {path.name for path in here.iterdir()} == {"there"}


def test_nothing_is_overwritten(run_there):
    with pytest.raises(ConfigError, match=r"^--into: .* already holds a run"):
        replay.again(run_there, into=run_there)


def test_a_replay_on_several_servers_needs_a_folder_that_they_share(run_there):
    asked = ["topology.num_nodes=2", "topology.node_rank=0", "topology.master_addr=localhost"]
    with pytest.raises(ConfigError, match=r"^--into: is missing: name a folder that the servers share"):
        replay.again(run_there, [*asked, "topology.ranks_per_node=1", "stages=[train]"])


# --- other data --------------------------------------------------------------------------------------------------------


def other_transcript(run_there: Path) -> None:
    first = sorted((run_there.parent / "corpus" / "train").glob("*.txt"))[0]
    first.write_text("nine nine")


def test_other_data_is_found_out_before_training_and_named(run_there, monkeypatch):
    other_transcript(run_there)
    monkeypatch.setattr("asr.stages.work", lambda *_: pytest.fail("it trains"))
    code, run = replay.again(run_there, ["stages=[train]"], into=Path("other"))
    assert code == 3
    record = read(Path("other") / "run.json")
    then, now = (read(folder / "run.json")["dataset"]["splits"]["train"]["fingerprint"] for folder in (run_there, run.path))
    assert then != now
    assert record["error"].startswith("other data than in the run that is replayed: train (train) had 6 utterances")
    for said in (f"fingerprint {then} and has 6", f"fingerprint {now};", f"compare {run_there}/manifest with", "--other-data"):
        assert said in record["error"]
    assert "eval" not in record["error"]
    assert (record["status"], record["exit_code"]) == ("failed", 3)
    code, _ = replay.resume(run.path)  # the first session has prepared it: it is no more the same for that
    assert code == 3


def test_other_data_may_be_asked_for(run_there):
    other_transcript(run_there)
    code, run = replay.again(run_there, other_data=True)
    assert code == 0
    (said,) = run.record["replay_of"]["other_data"]
    assert said.startswith("train (train) had")
    assert "WARNING asr.circumstances: other data" in (run.path / "run.log").read_text()


def test_a_corpus_that_was_moved_is_the_same_data(run_there):
    (run_there.parent / "corpus").rename("moved")
    code, run = replay.again(run_there, [f"dataset.root={Path('moved')}"])
    assert code == 0
    assert run.config["dataset"]["root"] == str(Path("moved").resolve())
    assert "other_data" not in run.record["replay_of"]


def test_a_run_from_before_there_were_fingerprints_is_compared_by_numbers(run_there):
    record = read(run_there / "run.json")
    for split in record["dataset"]["splits"].values():
        del split["fingerprint"]
    record["dataset"]["splits"]["eval"]["utterances"] = 5
    (run_there / "run.json").write_text(json.dumps(record))
    code, run = replay.again(run_there)
    assert code == 3
    assert "the run has no fingerprints of its data: utterances and hours are compared" in run.record["replay_of"]["differences"]
    assert run.record["error"].count("eval (test) had 5 utterances")
    assert "train (train)" not in run.record["error"]


# --- what is said ------------------------------------------------------------------------------------------------------


def test_what_differs_in_code_packages_and_host():
    then = {
        "git": {"commit": "a" * 40, "dirty": False},
        "packages": {"python": "3.11.1", "torch": "2.6", "gone": "1"},
        "host": {"name": "x", "pid": 1, "cpu": "A", "cpus": 2, "threads": None},
    }
    now = {
        "git": {"commit": "b" * 40, "dirty": True},
        "packages": {"python": "3.11.2", "torch": "2.6", "new": "2"},
        "host": {"name": "y", "pid": 2, "cpu": "B", "cpus": 2, "threads": "1"},
    }
    assert circumstances.in_circumstances(then, now) == [
        "code: commit aaaaaaaaaaaa -> bbbbbbbbbbbb",
        "code: with changes that aren't committed, now",
        "package gone: 1 -> absent",
        "package new: absent -> 2",
        "package python: 3.11.1 -> 3.11.2",
        "host CPU: A -> B",
        "host OMP_NUM_THREADS: None -> 1",
    ]
    assert circumstances.in_circumstances(then, then) == []
    assert circumstances.in_circumstances({"git": None, "packages": [], "host": 3}, {**then, "packages": {}}) == [
        f"code: commit unknown -> {'a' * 40}"
    ]
    facts = runs.here()
    assert circumstances.in_circumstances(facts, facts) in ([], ["code: with changes that aren't committed, then and now"])


def test_the_table_of_two_runs(tmp_path):
    made = []
    for name, metrics in {
        "a": {"eval_wer": 0.1, "epoch": 1, "train_runtime": 3.5, "train_samples_per_second": 1},
        "b": {"eval_wer": 0.10000000000000002, "epoch": 1, "train_runtime": 3.6, "max_memory_allocated (GB)": 2},
    }.items():
        run = Run.create(tmp_path / name, composed(), command=[], overrides=[])
        run.write_metrics(metrics)
        made.append(run)
    text = io.StringIO()
    Console(file=text, width=200).print(report.comparison(*made))
    shown = text.getvalue()
    assert "1 metrics differ: eval_wer" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert rows == [
        ["eval_wer", "0.1", "0.10000000000000002", "no"],
        ["epoch", "1", "1", "yes"],
        ["train_runtime", "3.5", "3.6", ""],
        ["train_samples_per_second", "1", "-", ""],
        ["max_memory_allocated (GB)", "-", "2", ""],
    ]


# --- directories of strangers ------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join(['*' + p] * 10)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)
)
HOSTILE = {
    "a class outside": (lambda c: c["model"].update(_target_="os.system"), "model._target_: 'os.system' is not a class of asr.*"),
    "a class that isn't imported to see": (lambda c: c["model"].update(_target_="evil.Model"), "'evil.Model' is not a class of asr.*"),
    "a class below": (lambda c: c["model"].update(architecture={"_target_": "asr.text.TextRules"}), "architecture._target_: only a group"),
    "a variable": (lambda c: c["dataset"].update(root="${oc.env:HF_TOKEN}"), "dataset.root: holds an interpolation"),
    "a resolver of ours": (lambda c: c.update(seed="${unless_streaming:1}"), "seed: holds an interpolation"),
    "a type": (lambda c: c.update(seed="much"), "seed: 'much' is not of type int"),
    "a list for a node": (lambda c: c.update(trainer=[1]), "trainer: has no _target_"),
    "a key": (lambda c: c["trainer"].update(nosuch=1), "trainer.nosuch: CTCTraining has no such key"),
    "a missing node": (lambda c: c.pop("model"), "model: has no _target_"),
    "a folder above": (lambda c: c.update(experiment_name="../../up"), "experiment_name: '../../up' can't name a folder"),
    "code of a repository": (
        lambda c: c["model"].update(trust_remote_code=True),
        "model.trust_remote_code: runs code of the model's repository; --allow model.trust_remote_code if you trust this run",
    ),
    "code of a metric": (lambda c: c["trainer"].update(eval_metrics=["wer", "/evil.py"]), "trainer.eval_metrics: runs /evil.py"),
    "a library": (lambda c: c["topology"]["environment"].update(LD_PRELOAD="/evil.so"), "topology.environment: sets LD_PRELOAD"),
    "another hub": (lambda c: c["topology"]["environment"].update(HF_ENDPOINT="https://evil"), "topology.environment: sets HF_ENDPOINT"),
}
BROKEN = {
    "a bomb": (BOMB, "holds more than 100000 values, aliases counted as what they stand for"),
    "an object": ("seed: !!python/object/apply:os.system ['touch touched']\n", "is no configuration of a run"),
    "no YAML": ("seed: [1\n", "is not YAML"),
    "a list": ("- seed\n", "holds keys, not a list"),
    "a word": ("seed", "it holds str, not keys"),
    "nothing": ("", "it holds NoneType, not keys"),
    "a date that isn't": ("seed: 2020-13-45\n", "is no configuration of a run"),
    "too many digits": (f"seed: {'9' * 5000}\n", "is no configuration of a run"),
    "deep": ("a: " + "[" * 2000, "nested more than 100 deep"),
    "bytes": (b"seed: \xff\n", "is not UTF-8"),
}


def refused(run: Path, here: Path, monkeypatch) -> str:
    """What a replay, and a resume, of a run are refused with; nothing has been imported for it or written."""
    import importlib

    imported: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name, *rest: imported.append(name) or real(name, *rest))
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    said = []
    for begin in (replay.again, replay.resume):
        with pytest.raises(ConfigError) as error:
            begin(run)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert [name for name in imported if name.partition(".")[0] not in ("asr", "encodings")] == []
    return said[0]


@pytest.mark.parametrize("what", HOSTILE)
def test_an_edited_configuration_is_refused(run_there, here, monkeypatch, what):
    change, message = HOSTILE[what]
    edit(run_there, change)
    (here / "evil.py").write_text("from pathlib import Path\nPath('touched').touch()\n")
    monkeypatch.syspath_prepend(here)
    assert message in refused(run_there, here, monkeypatch)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_configuration_is_refused(run_there, here, monkeypatch, what):
    content, message = BROKEN[what]
    (run_there / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused(run_there, here, monkeypatch)


def test_a_configuration_cut_anywhere_is_refused_or_whole(run_there, here, monkeypatch):
    whole = (run_there / "config.yaml").read_bytes()
    for length in range(0, len(whole) - 40, 701):
        (run_there / "config.yaml").write_bytes(whole[:length])
        refused(run_there, here, monkeypatch)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "{}", '{"status": "finished"}', "[" * 100_000])
def test_a_broken_record_is_no_run(run_there, here, monkeypatch, content):
    (run_there / "run.json").write_text(content)
    assert "is not a run directory (run.json can't be read: " in refused(run_there, here, monkeypatch)


@pytest.mark.parametrize("missing", ["config.yaml", "run.json"])
def test_a_directory_without_either_is_no_run(run_there, here, monkeypatch, missing):
    (run_there / missing).unlink()
    assert f"{missing} can't be read" in refused(run_there, here, monkeypatch) or missing == "run.json"


def test_facts_of_other_types_are_unknown(run_there):
    record = read(run_there / "run.json") | {"git": 3, "packages": "x", "host": [], "dataset": {"splits": {"train": 3}}, "overrides": 7}
    (run_there / "run.json").write_text(json.dumps(record))
    (run_there / "metrics.json").write_text("[")
    code, run = replay.again(run_there)
    assert (code, run.record["overrides"]) == (0, [])
    assert {"the run has no metrics to compare with", "the run doesn't say what data it had"} <= set(run.record["replay_of"]["differences"])


def test_a_rehearsal_is_not_replayed(run_there):
    edit(run_there, lambda config: config.update(rehearse=True))
    with pytest.raises(ConfigError, match="holds a rehearsal"):
        replay.again(run_there)


TEAM = """
from dataclasses import dataclass
from pathlib import Path
from asr.text import TextRules

Path("imported").touch()

@dataclass(kw_only=True)
class Ours(TextRules):
    shout: bool = False
"""


def test_a_team_s_own_class_is_let_in_by_name(run_there, here, monkeypatch):
    (here / "team_of_ours").mkdir()
    (here / "team_of_ours" / "__init__.py").write_text("")
    (here / "team_of_ours" / "text.py").write_text(TEAM)
    monkeypatch.syspath_prepend(here)
    edit(run_there, lambda config: config["text"].update(_target_="team_of_ours.text.Ours"))
    for allowed in ((), ("team_of_other",), ("team_of",)):
        with pytest.raises(ConfigError, match=r"text\._target_: 'team_of_ours\.text\.Ours' is not a class of asr\.\*"):
            replay.again(run_there, allowed=allowed)
    assert not (here / "imported").exists()
    for name in ("team_of_ours.", "team_of_ours.text."):
        assert trust.config_of(Run.load(run_there), [name])["text"]["_target_"] == "team_of_ours.text.Ours"
    code, run = replay.again(run_there, ["text.shout=true"], allowed=["team_of_ours"], into=Path("shouts"))
    assert (code, run.config["text"]["shout"]) == (0, True)


@pytest.mark.parametrize("what", ["code of a repository", "code of a metric", "a library"])
def test_code_beside_classes_is_let_in_by_its_key(run_there, what):
    edit(run_there, HOSTILE[what][0])
    run = Run.load(run_there)
    key = HOSTILE[what][1].partition(":")[0]
    assert trust.config_of(run, [key]) == run.config
    with pytest.raises(ConfigError, match=f"^{key}"):
        trust.config_of(run, ["asr", "model", "trainer."])


@pytest.mark.parametrize("name", ["", ".", "a b", "os.system()", "..asr"])
def test_what_is_allowed_is_a_package_or_a_key(run_there, name):
    with pytest.raises(ConfigError, match=r"^--allow: .* names neither a package nor one of model\.trust_remote_code"):
        replay.again(run_there, allowed=[name])


def test_every_topology_s_variables_are_harmless():
    listed = {path: yaml.safe_load(path.read_text()) for path in (ROOT / "conf").rglob("*.yaml")}
    nodes = [
        *(config for path, config in listed.items() if path.parent.name == "topology"),
        *(c.get("topology", {}) for c in listed.values()),
    ]
    found = [node["environment"] for node in nodes if "environment" in node]
    assert len(found) > 2
    assert [trust._variables({"topology": {"environment": variables}}) for variables in found] == [""] * len(found)


def test_the_command(run_there, here, capsys, monkeypatch):
    """As the shell has it: exit codes, one line for a mistake, a table at the end."""
    from asr import cli

    def asr(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["asr", *words])
        with pytest.raises(SystemExit) as ended:
            cli.app()
        return int(ended.value.code or 0)

    assert asr("replay", str(run_there), "seed=3", "--into", "other") == 0
    assert "seconds, mean" in capsys.readouterr().out
    assert read(here / "other" / "run.json")["replay_of"]["overrides"] == ["seed=3"]
    assert asr("replay", str(run_there), "sed=3") == 2
    assert capsys.readouterr().err == "error: sed: there is no such key. Did you mean seed?\n"
    other_transcript(run_there)
    assert asr("replay", str(run_there), "--into", "third") == 3
    edit(run_there, HOSTILE["a library"][0])
    assert asr("resume", str(run_there), "--allow", "topology.environment") == 0  # it has finished
    assert asr("resume", str(run_there)) == 2
