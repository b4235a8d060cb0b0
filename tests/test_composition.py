"""The real conf/: every file composes into objects that fit together."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, composed, other_half

from asr import command_line, composition
from asr.errors import ConfigError
from asr.pipeline import Pipeline

CONF = ROOT / "conf"
GROUPS = ("dataset", "model", "gaudi_config", "trainer", "topology", "experiment")
OPTIONS = [
    f"{group}={path.relative_to(CONF / group).with_suffix('')}"
    for group in GROUPS
    for path in sorted((CONF / group).rglob("*.yaml"))
    if path.parent.name != "published" and (group != "experiment" or "spoken_digits" in str(path))
]
"""All but the published recipes, which tests/test_recipes.py composes."""


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_into_checked_objects(option):
    pipeline = Pipeline.of(composed(option, *other_half(option)))
    assert pipeline.stages == ["train", "evaluate"]


def test_the_defaults():
    assert composed() == composed("experiment=spoken_digits_ctc") == composed("experiment=spoken_digits_ctc/v1")
    pipeline = Pipeline.of(composed())
    assert (pipeline.experiment_name, pipeline.experiment_version) == ("spoken_digits_ctc", "v1")
    assert (pipeline.dataset.train_split, pipeline.dataset.eval_split) == ("train", "test")
    assert pipeline.model.architecture["model_type"] == "wav2vec2-bert"


def test_the_published_gaudi_values():
    node = Pipeline.of(composed("gaudi_config=wav2vec2")).gaudi_config
    assert (node.use_fused_adam, node.use_fused_clip_norm, node.use_torch_autocast) == (True, True, True)


def test_conf_local_is_optional_and_wins(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "local").mkdir(exist_ok=True)
    (tmp_path / "conf" / "local" / "default.yaml").write_text("seed: 5\ntrainer:\n  args:\n    save_steps: 9\n")
    local = composition.to_container(composition.compose(conf=tmp_path / "conf"))
    assert (local["seed"], local["trainer"]["args"]["save_steps"]) == (5, 9)


def test_an_argument_that_no_file_lists_needs_no_plus():
    args = composed("trainer.args.max_steps=20", "trainer.args.adam_beta1=0.8")["trainer"]["args"]
    assert (args["max_steps"], args["adam_beta1"]) == (20, 0.8)


def test_yaml_that_is_no_yaml_is_a_configuration_error(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "topology" / "cpu.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError):
        composition.compose(conf=tmp_path / "conf")


def test_no_read_bare_is_the_word_no():
    assert Pipeline.of(composed("trainer.args.eval_strategy=no")).trainer.args["eval_strategy"] == "no"


def test_a_part_of_a_configuration_is_no_configuration():
    with pytest.raises(ConfigError, match=r"^stages: is missing"):
        Pipeline.of({key: value for key, value in composed().items() if key != "stages"})


def test_config_path_and_searchpath_are_followed(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "my conf, x=1")
    (tmp_path / "extra it's" / "topology").mkdir(parents=True)
    shutil.copy(CONF / "topology" / "cpu.yaml", tmp_path / "extra it's" / "topology" / "mine.yaml")
    asked = command_line.read_command_line(["-cp", str(tmp_path / "my conf, x=1"), "seed=3"])
    assert composition.compose(asked.jobs[0], conf=asked.conf)["seed"] == 3
    asked = command_line.read_command_line(["--config-dir", str(tmp_path / "extra it's"), "topology=mine"])
    assert composition.compose(asked.jobs[0])["topology"]["device"] == "cpu"
    with pytest.raises(ConfigError, match=r"leave --multirun out"):
        command_line.read_command_line(["-m", "--cfg", "job"])


def test_local_paths_become_absolute(tmp_path):
    (tmp_path / "m").mkdir()
    config = composition.with_absolute_paths(composed("model.name_or_path=m", "dataset.root=nowhere"), tmp_path)
    assert config["model"]["name_or_path"] == str(tmp_path / "m")
    assert config["dataset"]["root"] == "nowhere"
    halves = ["trainer=seq2seq", "model=wav2vec2_bart_base", "model.encoder_name_or_path=m", "model.decoder_name_or_path=someone/else"]
    config = composition.with_absolute_paths(composed(*halves), tmp_path)
    assert config["model"]["encoder_name_or_path"] == str(tmp_path / "m")
    assert config["model"]["decoder_name_or_path"] == "someone/else"


def test_composing_and_checking_import_no_heavy_package():
    code = (
        "import sys; from asr import composition; from asr.pipeline import Pipeline;"
        "Pipeline.of(composition.to_container(composition.compose(['model=wav2vec2_large_lv60'])));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'evaluate', 'optimum.habana', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_yaml_files_name_no_unknown_place():
    for path in CONF.rglob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    assert Path(CONF / "config.yaml").read_text().count("\n") < 40


def test_a_bare_experiment_name_is_its_newest_version():
    for alias in (CONF / "experiment").glob("*.yaml"):
        versions = sorted(int(path.stem[1:]) for path in (CONF / "experiment" / alias.stem).glob("v*.yaml") if path.stem[1:].isdigit())
        assert yaml.safe_load(alias.read_text())["defaults"] == [f"{alias.stem}/v{versions[-1]}"]
        released = composed(f"experiment={alias.stem}")
        assert (released["experiment_name"], released["experiment_version"]) == (alias.stem, f"v{versions[-1]}")


def test_defaults_that_count_epochs_are_not_meant_for_streams():
    stream = ["dataset=hub", "dataset.streaming=true"]
    for overrides, epochs, saves in (
        ([], 4, "epoch"),
        (stream, None, "steps"),
        ([*stream, "trainer.args.num_train_epochs=2", "trainer.args.save_strategy=epoch"], 2, "epoch"),
    ):
        args = composed(*overrides)["trainer"]["args"]
        assert (args["num_train_epochs"], args["save_strategy"]) == (epochs, saves)
