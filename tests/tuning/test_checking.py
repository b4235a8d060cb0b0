"""What is refused before a sweep by Optuna starts: exit code 2, nothing written."""

import copy
import importlib.util
import os
import subprocess
import sys
from functools import lru_cache

import pytest
from conftest import ENGINE, ROOT
from omegaconf import OmegaConf, open_dict

from asr import command_line, composition, config_files, preflight
from asr.errors import ConfigError
from asr.tuning import checking, settings

RATE = "trainer.args.learning_rate=interval(1e-4,1e-3)"


@lru_cache(maxsize=1)
def composed():
    """The saved sweep without its schema, so that a test can put in what an interpolation might."""
    return OmegaConf.create(OmegaConf.to_container(composition.compose(["+sweep=optuna"], with_hydra=True)))


def check(overrides=(), **changes):
    config = copy.deepcopy(composed())
    with open_dict(config):
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value, merge=False)
    return checking.overrides_to_check(config, list(overrides), config_files.CONF)


needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")


@needs_optuna
def test_the_saved_sweep_is_checked_at_its_bounds():
    lists = check(["+sweep=optuna"])
    assert lists[0] == ["+sweep=optuna", "trainer.args.learning_rate=0.0001", "trainer.args.per_device_train_batch_size=4"]
    assert len(lists) == 1 + 1 + 2


BAD = [
    ({"hydra__sweeper__direction": "up"}, r"^hydra\.sweeper\.direction: 'up' is not one of minimize, maximize"),
    ({"hydra__sweeper__n_trials": 0}, r"^hydra\.sweeper\.n_trials: 0 is out of range"),
    ({"hydra__sweeper__n_trials": "many"}, r"^hydra\.sweeper\.n_trials: 'many' is not of type int"),
    ({"hydra__sweeper__max_failure_rate": 2}, r"^hydra\.sweeper\.max_failure_rate: 2 is out of range"),
    ({"hydra__sweeper__nosuch": 2}, r"^hydra\.sweeper\.nosuch: Settings has no such key"),
    ({"hydra__sweeper__sampler": {"name": "tpee"}}, r"^hydra\.sweeper\.sampler\.name: 'tpee' .*Did you mean tpe\?"),
    ({"hydra__sweeper__sampler": {"n_startup": 1}}, r"^hydra\.sweeper\.sampler\.n_startup: .*Did you mean n_startup_trials\?"),
    (
        {"hydra__sweeper__sampler": {"n_startup_trials": 5, "group": True, "multivariate": False}},
        r"^hydra\.sweeper\.sampler: TPESampler doesn't",
    ),
    ({"hydra__sweeper__sampler": {"name": ["tpe"]}}, r"^hydra\.sweeper\.sampler\.name: \['tpe'\] is not one of"),
    ({"hydra__sweeper__sampler": {"gamma": 5}}, r"^hydra\.sweeper\.sampler\.gamma: 5 can't be given here"),
    ({"hydra__sweeper__sampler": {"seed": "x"}}, r"^hydra\.sweeper\.sampler\.seed: 'x' can't be given here"),
    ({"hydra__sweeper__params": {}}, r"^hydra\.sweeper\.params: the sweep varies nothing; give a key a range"),
    ({"hydra__sweeper__storage": "studies.db"}, r"^hydra\.sweeper\.storage: is no address of a database"),
    ({"hydra__launcher": {"_target_": "hydra_plugins.hydra_submitit_launcher.X"}}, r"^hydra\.sweeper\.n_jobs: say how many"),
    ({"hydra__launcher": {"_target_": "hydra_plugins.hydra_joblib_launcher.X", "n_jobs": -1}}, r"^hydra\.sweeper\.n_jobs: say how many"),
    ({"dry_run": True}, r"^dry_run: gives no WER to optimise"),
    ({"rehearse": True}, r"^rehearse: gives no WER to optimise"),
    ({"stages": ["train"]}, r"^stages: gives no WER to optimise: add evaluate"),
]


@needs_optuna
@pytest.mark.parametrize(("changes", "message"), BAD)
def test_settings_that_are_wrong_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(**changes)


@needs_optuna
@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:sesame@host/db",
        "redis://:sesame@host",
        "mysql://host/db?password=sesame",
        "mysql://host/db?auth_token=sesame",
        "a://[sesame",
    ],
)
def test_a_password_in_the_configuration_is_refused_and_not_repeated(address, monkeypatch):
    with pytest.raises(ConfigError, match=r"^hydra\.sweeper\.storage: .*ASR_OPTUNA_STORAGE") as refused:
        check(hydra__sweeper__storage=address)
    assert "sesame" not in str(refused.value)
    monkeypatch.setenv("ASR_OPTUNA_STORAGE", address)  # its place
    assert check()


@needs_optuna
def test_jobs_at_once_are_the_launcher_s():
    config = copy.deepcopy(composed())
    asked = settings.read(config)
    assert settings.jobs_at_once(config, asked) == 1
    with open_dict(config):
        config.hydra.launcher = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 8}
    assert settings.jobs_at_once(config, asked) == 8


def test_without_optuna_the_mend_is_named(monkeypatch):
    monkeypatch.setattr("asr.tuning.studies.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^hydra\.sweeper: Optuna is not installed: pip install -e '\.\[optuna\]'"):
        check()


@needs_optuna
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-m", "+sweep=optuna", "trainer.args.learning_rat=interval(1,2)"],
            r"^trainer\.args\.learning_rat: .* Did you mean learning_rate\?",
        ),
        (
            ["+sweep=optuna", "trainer.args.per_device_train_batch_size=choice(8,0)"],
            r"^trainer\.args\.per_device_train_batch_size: 0 is out of",
        ),
        (["-m", "hydra/sweeper=asr_optuna", RATE.replace("1e-4", "-1")], r"^trainer\.args\.learning_rate: -1\.0 is out of range"),
        (
            ["-m", "hydra/sweeper=asr_optuna", "hydra.sweeper.n_trial=3", RATE],
            r"^hydra\.sweeper\.n_trial: .* Did you mean hydra\.sweeper\.n_trials\?",
        ),
        (["-m", RATE], r"^trainer\.args\.learning_rate: an interval is no list of values: .*hydra/sweeper=asr_optuna"),
        (["-m", "hydra/sweeper=basic", "seed=range(0,200)", "trainer.args.max_steps=range(1,200)"], r"^the sweep has 39800 jobs"),
        (["hydra/sweeper=optuna"], r"^hydra/sweeper: there is no 'optuna' .*Did you mean asr_optuna\?"),
    ],
)
def test_a_launch_is_refused_for_a_parameter_that_can_t_be(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        preflight.check(command_line.read_command_line([*words, *ENGINE]))
    assert list(tmp_path.iterdir()) == []


@needs_optuna
def test_options_of_a_group_are_checked_each():
    models = [next(word for word in words if word.startswith("model=")) for words in check(["model=glob(wav2vec2_*, exclude=*bart*)"])]
    assert set(models) == {f"model={name}" for name in ("wav2vec2_base", "wav2vec2_bert_tiny", "wav2vec2_large_lv60", "wav2vec2_tiny")}


@needs_optuna
def test_a_space_larger_than_any_grid_is_no_trouble():
    wide = [f"trainer.args.{name}=range(1,200)" for name in ("max_steps", "warmup_steps", "eval_steps")]
    asked = command_line.read_command_line(["-m", "hydra/sweeper=asr_optuna", *wide])
    assert len(check(asked.overrides)) == 1 + 3 + 1 + 2


@needs_optuna
def test_the_sweeper_alone_makes_it_a_sweep(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    with pytest.raises(ConfigError, match=r"^hydra\.sweeper\.params: the sweep varies nothing"):
        preflight.check(command_line.read_command_line(["hydra/sweeper=asr_optuna", *ENGINE]))
    assert sys.argv[1:] == ["hydra.mode=MULTIRUN"]


def test_the_sweeper_is_there_wherever_one_is_and_imports_no_optuna(tmp_path):
    """As the code's packages are where they are installed in place: mapped by name, where Hydra's scan sees nothing."""
    code = f"""
import importlib.util, sys
class Mapped:
    def find_spec(name, path=None, target=None):
        places = {{"asr": "asr", "hydra_plugins.asr_optuna": "hydra_plugins/asr_optuna"}}
        return importlib.util.spec_from_file_location(name, {str(ROOT)!r} + "/" + places[name] + "/__init__.py") if name in places else None
    find_spec = staticmethod(find_spec)
sys.path = [place for place in sys.path if place not in ("", {str(ROOT)!r})] + [{str(tmp_path)!r}]
sys.meta_path.insert(0, Mapped)
from asr import command_line, composition, config_files, preflight
from hydra.core.plugins import Plugins
print(*(f"hydra_plugins.{{name}}" in Plugins.instance().class_name_to_class for name in ("asr_optuna.OptunaSweeper", "theirs.Theirs")))
print("optuna" in sys.modules)
"""
    theirs = tmp_path / "hydra_plugins" / "theirs"  # another distribution's plugin, which must not be hidden
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text(
        "from hydra.plugins.search_path_plugin import SearchPathPlugin\n\nclass Theirs(SearchPathPlugin):\n"
        "    def manipulate_search_path(self, search_path):\n        pass\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == ["True", "True", "False"], done.stderr
