"""Released versions stay what they were: whatever moves a key of one is found, and named by file and line."""

import importlib
import io
import json
import os
import re
import shutil
import sys

import pytest
from conftest import ROOT

from asr import command_line, composition, experiments, preflight
from asr.catalogue import LOCK, Catalogue
from asr.differences import ABSENT, differences
from asr.drift import Findings, examine
from asr.errors import ConfigError

pytestmark = pytest.mark.optimum_habana  # the recipes have arguments of GaudiTrainingArguments

HPU8, STREAM = "librispeech_ctc_hpu8", "common_voice_tr_ctc_streaming"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A copy of conf/ with two versions, released."""
    conf = tmp_path_factory.mktemp("released") / "conf"
    kept = {f"{HPU8}/v2", f"{STREAM}/v2"}
    shutil.copytree(ROOT / "conf", conf, ignore=shutil.ignore_patterns(LOCK, "local"))
    for path in (conf / "experiment").glob("*/*.yaml"):
        if f"{path.parent.name}/{path.stem}" not in kept:
            path.unlink()
    done = experiments.release(Catalogue(conf=conf))
    assert (sorted(done.added), done.pointed, bool(done.found)) == (sorted(kept), [], False)
    return conf


@pytest.fixture
def conf(released, tmp_path):
    return shutil.copytree(released, tmp_path / "conf")


def edit(path, old, new):
    text = path.read_text()
    assert re.search(old, text, re.MULTILINE), f"{old} isn't in {path}"
    path.write_text(re.sub(old, new, text, count=1, flags=re.MULTILINE))


def moved(conf, version):
    """Return what moved in one version: the value before and now, and the cause, by key."""
    catalogue, found = Catalogue(conf=conf), Findings()
    name, _, number = version.partition("/")
    examine(catalogue, version, catalogue.lock()[name][number], catalogue.compositions([version])[version], found)
    assert not found.problems
    return {drift.key: (drift.was, drift.now, drift.cause) for drift in found.drifts}


# ---- what moves a key ----

V2 = f"experiment/{HPU8}/v2.yaml"
CTC = "conf/trainer/ctc.yaml"
MOVES = {
    "trainer.args.optim": ("trainer/ctc.yaml", "optim: adamw_torch", "optim: sgd", "adamw_torch", "sgd", f"{CTC}:9 sets it"),
    "trainer.args.bf16": (V2, "bf16: true", "bf16: false", True, False, f"conf/{V2}:N sets it"),
    "trainer.args.warmup_steps": (V2, "^    warmup_steps: 500\n", "", 500, ABSENT, f"conf/{V2} no longer sets it"),
    "batching.reference_seconds": (
        *(V2, "^  reference_seconds: .*\n", "", 15.3, None),
        f"conf/{V2} no longer sets it; asr/batching.py:N (Buckets.reference_seconds) does",
    ),
    "trainer.args.per_device_train_batch_size": (
        *(V2, "^    per_device_train_batch_size: .*\n", "", 4, 8),
        f"conf/{V2} no longer sets it; {CTC}:N does",
    ),
    "topology.environment.TOKENIZERS_PARALLELISM": (
        *("topology/hpu1.yaml", '_PARALLELISM: "false"', '_PARALLELISM: "true"', "false", "true"),
        "conf/topology/hpu1.yaml:N sets it",
    ),
    "stages": ("config.yaml", "^stages: .*", "stages: [train]", ["train", "evaluate"], ["train"], "conf/config.yaml:N sets it"),
    "seed": ("config.yaml", "^stages: ", "seed: 3\nstages: ", 0, 3, "conf/config.yaml:N sets it"),
    "trainer.args.adam_beta1": ("trainer/ctc.yaml", "^  report_to:", "  adam_beta1: 0.8\n  report_to:", ABSENT, 0.8, f"{CTC}:N sets it"),
    "trainer.args.report_to": (
        *("trainer/ctc.yaml", r"report_to: \[tensorboard\]", "report_to: [tensorboard, wandb]"),
        *(["tensorboard"], ["tensorboard", "wandb"], f"{CTC}:N sets it"),
    ),
}
"""Of keys: the file that is edited, what there, the value before and after, and what is said (N for a line's number)."""


def test_what_moves_a_key_is_named(conf):
    for file, old, new, *_ in MOVES.values():
        edit(conf / file, old, new)
    found = moved(conf, f"{HPU8}/v2")
    said = {key: (was, now, why if key == "trainer.args.optim" else re.sub(r":\d+", ":N", why)) for key, (was, now, why) in found.items()}
    assert said == {key: tuple(move[3:]) for key, move in MOVES.items()}


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "cause", "others"),
    [
        (V2, "topology: hpu8", "topology: hpu1", "topology.backend", f"^conf/{V2}:11 chooses topology=hpu1, where it was hpu8$", None),
        (
            V2,
            "batching: buckets",
            "batching: longest",
            "batching._target_",
            "chooses batching=longest, where it was buckets$",
            "longer sets it$",
        ),
        (
            "topology/hpu8.yaml",
            "- hpu1",
            "- gpu1",
            "topology.device",
            "^conf/topology/hpu8.yaml no longer takes in conf/topology/hpu1.yaml$",
            None,
        ),
    ],
)
def test_what_another_choice_moves_is_laid_to_the_choice(conf, file, old, new, key, cause, others):
    edit(conf / file, old, new)
    if "longest" in new:
        edit(conf / V2, "^batching:\n(  .*\n)+", "")
    found = {name: why for name, (_, _, why) in moved(conf, f"{HPU8}/v2").items()}
    assert re.search(cause, found.pop(key))
    assert found
    assert all(re.search(f"{cause}|takes in conf/topology/gpu1.yaml|{others}", why) for why in found.values()), found


def test_a_key_that_others_decide_is_said_beside_the_one_that_moved_it(conf):
    edit(conf / "experiment" / STREAM / "v2.yaml", "streaming: true", "streaming: false")
    found = moved(conf, f"{STREAM}/v2")
    assert set(found) == {"dataset.streaming", "trainer.args.num_train_epochs"}
    assert found["trainer.args.num_train_epochs"][2].endswith("sets it, which other keys decide: ${unless_streaming:3}")


def test_what_leaves_a_version_as_it_was_is_no_drift(conf):
    edit(conf / V2, "learning_rate: 3e-4", "learning_rate: 0.00030")  # another spelling
    edit(conf / V2, "num_train_epochs: 3", "num_train_epochs: 3.0")
    edit(conf / V2, "^# wav2vec", "# Wav2vec")
    edit(conf / "trainer" / "ctc.yaml", "num_train_epochs: .*", "num_train_epochs: 30")  # which v2 sets itself
    edit(conf / "trainer" / "ctc.yaml", "  save_total_limit: 2\n", "")
    edit(conf / V2, "^    warmup_steps: 500\n", "    warmup_steps: 500\n    save_total_limit: 2\n")  # the mend for a changed default
    assert moved(conf, f"{HPU8}/v2") == {}


def test_a_version_that_doesn_t_compose_any_more_names_key_and_line(conf):
    edit(conf / V2, "layerdrop: 0.0", "layerdop: 0.0")
    ((_, _, cause),) = moved(conf, f"{HPU8}/v2").values()
    assert re.search(rf"it doesn't compose any more \(model\.layerdop: there is no such key.*\): conf/{V2}:\d+$", cause)
    (conf / V2).write_text("defaults: [\n")
    assert re.search(r"v2\.yaml:\d+ is not YAML", moved(conf, f"{HPU8}/v2")[""][2])


# ---- a class of one's own, in a folder of one's own ----

CLASS = """
from dataclasses import dataclass
from asr.gaudi import GaudiConfig


@dataclass(kw_only=True)
class Mine(GaudiConfig):
    depth: int = 2
"""
EXPERIMENT = """# @package _global_
# Ours, for a trial.
defaults:
  - override /gaudi_config: mine
experiment_name: trial
experiment_version: v1
"""


@pytest.fixture
def team(tmp_path, monkeypatch):
    """A folder as --config-dir takes it, with a class of its own, released; the path of the class's module."""
    (tmp_path / "experiment" / "trial").mkdir(parents=True)
    (tmp_path / "gaudi_config").mkdir()
    (tmp_path / "gaudi_config" / "mine.yaml").write_text("defaults:\n  - /schema/locked_by_team.Mine@_here_\n")
    (tmp_path / "experiment" / "trial" / "v1.yaml").write_text(EXPERIMENT)
    module = tmp_path / "locked_by_team.py"
    module.write_text(CLASS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of the module in a second have one time stamp
    done = experiments.release(Catalogue(tmp_path))
    assert (done.added, len(done.pointed)) == (["trial/v1"], 1)
    yield tmp_path
    sys.modules.pop("locked_by_team", None)


def rewritten(team, old, new):
    module = team / "locked_by_team.py"
    module.write_text(module.read_text().replace(old, new))
    importlib.reload(sys.modules["locked_by_team"])


def test_the_default_of_a_class_that_changes_is_drift(team):
    rewritten(team, "depth: int = 2", "depth: int = 3")
    (drift,) = experiments.check(Catalogue(team)).drifts
    assert (drift.key, drift.was, drift.now) == ("gaudi_config.depth", 2, 3)
    assert re.search(r"locked_by_team\.py:8 \(Mine\.depth\) is its default$", drift.cause)


def test_a_key_that_a_class_has_lost_is_drift(team):
    rewritten(team, "depth: int = 2", "width: int = 2")
    (drift,) = experiments.check(Catalogue(team)).drifts  # width is new, with its default
    assert (drift.key, drift.was, drift.now) == ("gaudi_config.depth", 2, ABSENT)
    assert re.search(r"locked_by_team\.py \(Mine\) no longer has it$", drift.cause)


def test_a_new_key_with_its_default_is_appended_and_held_from_then_on(team):
    rewritten(team, "depth: int = 2", "depth: int = 2\n    width: int | None = None")
    assert not experiments.check(Catalogue(team))
    done = experiments.release(Catalogue(team))
    assert (done.appended, done.added) == ({"trial/v1": ["gaudi_config.width"]}, [])
    assert experiments.locked("trial", "v1", Catalogue(team))["gaudi_config"]["width"] is None
    rewritten(team, "width: int | None = None", "width: int | None = 0")
    assert [drift.key for drift in experiments.check(Catalogue(team)).drifts] == ["gaudi_config.width"]


def test_a_new_key_with_another_value_is_drift(team):
    rewritten(team, "depth: int = 2", "depth: int = 2\n    width: int = 1")
    (team / "gaudi_config" / "mine.yaml").write_text("defaults:\n  - /schema/locked_by_team.Mine@_here_\n  - _self_\nwidth: 5\n")
    (drift,) = experiments.check(Catalogue(team)).drifts
    assert (drift.key, drift.was, drift.now) == ("gaudi_config.width", ABSENT, 5)
    assert drift.cause.endswith("mine.yaml:4 sets it")


# ---- what must not enter ----


def test_conf_local_never_enters(conf):
    (conf / "local").mkdir()
    for content in ("seed: 5\ntrainer: {args: {save_steps: 9}}\n", "not: [yaml\n"):
        (conf / "local" / "default.yaml").write_text(content)
        assert moved(conf, f"{HPU8}/v2") == {}
    (conf / "local" / "default.yaml").write_text("seed: 5\n")
    assert composition.compose([f"experiment={HPU8}/v2"], conf=conf)["seed"] == 5, "a launch has it still"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (V2, "bf16: true", "run_name: ${oc.env:SOME_HOST,here}", r"^it .*run_name: '\${oc\.env:SOME_HOST,here}' isn't the same"),
        (V2, "bf16: true", "run_name: ${now:%Y}", r"trainer\.args\.run_name: .* isn't the same on every machine"),
        (V2, "topology: hpu8", "topology: ${oc.env:SOME_TOPOLOGY,hpu8}", r"a defaults list chooses by the variable SOME_TOPOLOGY"),
    ],
)  # fmt: skip
def test_what_the_environment_or_the_time_decides_is_refused(conf, monkeypatch, file, old, new, message):
    monkeypatch.setenv("SOME_TOPOLOGY", "hpu8")
    edit(conf / file, old, new)
    ((_, _, cause),) = moved(conf, f"{HPU8}/v2").values()
    assert re.search(message, cause)
    monkeypatch.setenv("SOME_HOST", "there")
    assert composition.compose([f"experiment={HPU8}/v2"], conf=conf).topology.ranks_per_node == 8, "a launch takes it still"


def test_arguments_that_nobody_set_are_not_locked(conf):
    held = experiments.locked(HPU8, "v2", Catalogue(conf=conf))
    assert "adam_beta1" not in held["trainer"]["args"]
    assert held["trainer"]["args"]["learning_rate"] == 3e-4
    with pytest.raises(ConfigError, match=rf"{HPU8}/v3 is not released. Did you mean {HPU8}/v"):
        experiments.locked(HPU8, "v3", Catalogue(conf=conf))


# ---- releasing ----


def test_releasing_again_changes_no_byte(team):
    before = (team / "experiment" / LOCK).read_bytes()
    assert experiments.release(Catalogue(team)).lines() == ["Released versions: 1."]
    assert (team / "experiment" / LOCK).read_bytes() == before


def test_the_next_version_is_released_and_becomes_the_newest(team):
    catalogue, folder = Catalogue(team), team / "experiment" / "trial"
    for name in ("v10", "v2-draft"):
        shutil.copy(folder / "v1.yaml", folder / f"{name}.yaml")
    with pytest.raises(ConfigError, match=r"trial/v10\.yaml can't be released: experiment_version: is 'v1'; write v10"):
        experiments.release(catalogue)
    edit(folder / "v10.yaml", "experiment_version: v1", "experiment_version: v10")
    problems = experiments.check(catalogue).problems
    assert problems == [f"{folder}/v10.yaml is not released: run `asr experiments lock --config-dir {team}`, or call it v10-draft.yaml"]
    edit(team / "experiment" / "trial.yaml", "newest version", "newest of ours")
    done = experiments.release(catalogue)
    assert (done.added, done.pointed) == (["trial/v10"], [f"{folder}.yaml"])
    assert catalogue.composed("trial")["experiment_version"] == "v10"
    assert "newest of ours" in (team / "experiment" / "trial.yaml").read_text(), "its comment stays"
    (shown,) = experiments.experiments(catalogue)
    assert (shown.released, shown.drafts, shown.description) == (["v1", "v10"], ["v2-draft"], "Ours, for a trial.")


def test_what_can_t_be_launched_can_t_be_released(team):
    shutil.copy(team / "experiment" / "trial" / "v1.yaml", team / "experiment" / "trial" / "v2.yaml")
    edit(team / "experiment" / "trial" / "v2.yaml", "version: v1", "version: v2\ntrainer:\n  args:\n    learning_rate: -1")
    with pytest.raises(ConfigError, match=r"trial/v2\.yaml can't be released: trainer\.args\.learning_rate: -1 is out of range"):
        experiments.release(Catalogue(team))


def test_a_release_that_moved_is_taken_only_on_demand(team):
    catalogue, path = Catalogue(team), team / "experiment" / LOCK
    before = path.read_bytes()
    edit(team / "experiment" / "trial" / "v1.yaml", "experiment_version: v1", "experiment_version: v1\nseed: 4")
    done = experiments.release(catalogue)
    assert [(drift.key, drift.was, drift.now) for drift in done.found.drifts] == [("seed", 0, 4)]
    with pytest.raises(ConfigError, match=r"1 released version composes to something else .* put the value back.*next version"):
        done.found.raise_if_any()
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match=r"^--replace: trial/v9 is not released, .* Did you mean trial/v1\?"):
        experiments.release(catalogue, ["trial/v9"])
    done = experiments.release(catalogue, ["trial/v1"])
    assert (done.replaced, bool(done.found)) == (["trial/v1"], False)
    assert experiments.locked("trial", "v1", catalogue)["seed"] == 4


def test_a_release_whose_file_is_gone_is_named_and_can_be_withdrawn(team):
    catalogue = Catalogue(team)
    (team / "experiment" / "trial" / "v1.yaml").rename(team / "experiment" / "trial" / "v1-draft.yaml")
    assert re.search(r"trial/v1\.yaml is gone: restore it .*--replace trial/v1` withdraws it", experiments.check(catalogue).problems[0])
    assert "is gone" in experiments.release(catalogue).lines()[0]
    assert experiments.configuration("trial/v1", catalogue)["experiment_version"] == "v1", "the lock has it still"
    assert experiments.release(catalogue, ["trial/v1"]).withdrawn == ["trial/v1"]
    assert not experiments.check(catalogue)
    assert not catalogue.file("trial").exists(), "it would lead nowhere"


@pytest.mark.parametrize("text", ["defaults: [librispeech_ctc_hpu8/v1]\n", "defaults: [librispeech_ctc_hpu8/v2]\nseed: 3\n", "", "- a\n"])
def test_a_bare_name_that_is_anything_but_the_newest_release_is_found_and_mended(conf, text):
    alias, catalogue = conf / "experiment" / f"{HPU8}.yaml", Catalogue(conf=conf)
    alias.write_text(text)
    if text.startswith("-"):
        with pytest.raises(ConfigError, match=r"holds keys, not a list"):
            catalogue.alias(HPU8)
        return
    assert catalogue.alias(HPU8) != "v2"
    assert catalogue.point(HPU8, "v2")
    assert catalogue.alias(HPU8) == "v2"


# ---- the lock's file ----

BROKEN = {
    "a merge left open": lambda text: text.replace('   "v2"', '<<<<<<< HEAD\n   "v2"', 1),
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a version twice": lambda text: text.replace('   "v2": {', '   "v2": {}, "v2": {', 1),
    "a list": lambda text: "[]",
    "another format": lambda text: text.replace('"format": 1', '"format": 2'),
    "no configuration": lambda text: json.dumps({"format": 1, "experiments": {"a": {"v1": {"choices": {}, "files": {}}}}}),
    "no versions": lambda text: json.dumps({"format": 1, "experiments": {"a": []}}),
    "nested without end": lambda text: "[" * 100_000,
    "no text": lambda text: b"\xff\xfe",
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_lock_is_one_line_with_the_mend(conf, damage):
    path = conf / "experiment" / LOCK
    broken = BROKEN[damage](path.read_text())
    assert broken != path.read_text()
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    with pytest.raises(ConfigError, match=r"lock\.json.* can't be read \(.*take one side of it as a whole, else restore it") as refused:
        experiments.check(Catalogue(conf=conf))
    assert "\n" not in str(refused.value)


def test_every_version_here_is_locked():
    catalogue = Catalogue()
    held = {f"{name}/{version}" for name, versions in catalogue.lock().items() for version in versions}
    assert held == {f"{name}/{version}" for name, versions in catalogue.files().items() for version in versions if "draft" not in version}
    assert "asr experiments check" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_every_version_here_composes_to_what_it_did():
    assert experiments.check(Catalogue()).lines() == [], "make check says the same"


# ---- comparing and launching ----


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        ({"a": 3}, {"a": 3.0}, []),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
        ({"a": None}, {}, [("a", None, ABSENT)]),
        ({"a": {}}, {"a": {}}, []),
        ({"a": {}}, {}, [("a", {}, ABSENT)]),
        ({"a": {}}, {"a": {"b": 1}}, [("a.b", ABSENT, 1)]),
        ({"a": {"b": {"c": 1}}}, {}, [("a.b.c", 1, ABSENT)]),
        ({"a": {"b": 1}}, {"a": None}, [("a", {"b": 1}, None)]),
        ({"a": [1, 2]}, {"a": [1, 2.0]}, []),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, [("a", [1, {"b": 2}], [1, {"b": 3}])]),
        ({"a": "1"}, {"a": 1}, [("a", "1", 1)]),
        ({"a": float("nan")}, {"a": float("nan")}, []),
        ({"a": 1e-8}, json.loads(json.dumps({"a": 1e-8})), []),
    ],
)
def test_differences(left, right, found):
    assert differences(left, right) == found


def test_the_tables(team):
    from rich.console import Console

    from asr import report

    def shown(table):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(table)
        return " ".join(re.sub("[^ -~]", " ", console.export_text()).split())

    assert shown(report.experiments_table(experiments.experiments(Catalogue(team)))).endswith("trial v1 v1 Ours, for a trial.")
    found = differences({"a": {"[red]": "x"}, "b": None}, {"a": {"[red]": "y"}})
    assert shown(report.differences_table("one/v1", "run", found)) == 'key one/v1 run a.[red] "x" "y" b null -'


def test_a_run_is_compared_with_a_version(run_dir):
    catalogue = Catalogue()
    found = differences(experiments.configuration("spoken_digits_ctc/v1", catalogue), experiments.configuration(str(run_dir), catalogue))
    assert ("seed", 0, 7) in found
    assert not [key for key, _, _ in found if key.startswith("model.")]
    with pytest.raises(
        ConfigError, match=r"spoken_digits_ctc/v7 is neither an experiment nor a run directory. Did you mean spoken_digits_ctc/v1\?"
    ):
        experiments.configuration("spoken_digits_ctc/v7", catalogue)


def test_a_launch_without_a_version_says_which_it_takes(tmp_path, capsys):
    def taken(*words):
        return composition.version_taken(composition.compose(words, with_hydra=True))

    assert (taken("experiment=spoken_digits_whisper/v1"), taken()) == ("", "")
    words = ["experiment=spoken_digits_ctc", "dry_run=true", f"hydra.run.dir={tmp_path / 'run'}"]
    preflight.check(command_line.read_command_line(words))
    assert capsys.readouterr().err == "experiment: spoken_digits_ctc/v1, the newest version; name it to keep to it\n"


def test_the_nearest_version_is_named_also_of_a_folder_of_one_s_own(team):
    for name, right in (("trial/v4", "trial/v1"), ("trail/v1", "trial/v1"), (f"{HPU8}/v7", f"{HPU8}/v")):
        with pytest.raises(ConfigError, match=rf"^experiment: there is no '{name}' in conf/experiment. Did you mean {right}"):
            composition.compose(command_line.read_command_line(["--config-dir", str(team), f"experiment={name}"]).jobs[0])
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        Catalogue(team / "nowhere").files()


def test_the_commands_end_in_the_contract_s_exit_codes(team, monkeypatch):
    from test_cli import run_asr

    monkeypatch.setenv("PYTHONPATH", str(team), prepend=os.pathsep)
    assert run_asr("experiments", "check", "--config-dir", str(team)).returncode == 0
    edit(team / "experiment" / "trial" / "v1.yaml", "experiment_version: v1", "experiment_version: v1\nseed: 4")
    done = run_asr("experiments", "check", "--config-dir", str(team))
    assert done.returncode == 2
    assert re.search(r"trial/v1\.yaml:7 sets it \(trial/v1\)\n    seed: was 0, now 4", done.stdout)
    assert done.stderr.startswith("error: 1 released version composes to something else")
