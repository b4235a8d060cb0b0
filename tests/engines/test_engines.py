"""Every engine trains the same: step by step on one configuration, and each by its name."""

import importlib
import os
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import EVERY_ENGINE, INSTALLED_ENGINES, ROOT, TINY
from test_trainer import built

from asr import engines, gaudi
from asr.errors import ConfigError
from asr.topology import Topology
from asr.trainer import CTCTraining, class_path


def trained(tmp_path, engine, *overrides):
    """Return what a short training gave: the loss of every batch, what was logged of steps and evaluations, the last evaluation."""
    options = ["max_steps=4", "learning_rate=2e-3", "warmup_steps=0", "logging_steps=1", "save_strategy=no", *overrides]
    made, _ = built(tmp_path / engine, f"trainer.engine={engine}", *(f"trainer.args.{option}" for option in options))
    assert made.engine is engines.engine(engine)
    losses, step = [], made.training_step

    def recorded(*args, **kwargs):
        losses.append(step(*args, **kwargs).item())
        return torch.tensor(losses[-1])

    made.training_step = recorded
    made.train()
    compared = ("loss", "learning_rate", "eval_loss", "eval_wer", "eval_cer", "epoch")
    history = [{name: line[name] for name in compared if name in line} for line in made.state.log_history[:-1]]
    return losses, history, made.evaluate()["eval_loss"]


@pytest.mark.optimum_habana
@pytest.mark.parametrize(
    "overrides",
    [
        ["eval_strategy=steps", "eval_steps=2"],
        ["gradient_accumulation_steps=2", "per_device_train_batch_size=4"],  # an epoch's last step may accumulate fewer batches
    ],
)
def test_engines_give_equal_losses_step_by_step(tmp_path, overrides):
    ours, theirs = (trained(tmp_path, engine, *overrides) for engine in ("gaudi", "transformers"))
    assert len(ours[0]) >= 4
    assert ours[1][3]["loss"] < ours[1][0]["loss"]  # something was learnt, so there was something to differ in
    assert theirs == ours


@pytest.mark.parametrize("name", EVERY_ENGINE)
def test_an_engine_is_a_file_with_the_library_s_classes(name):
    engine = engines.engine(name)
    engine.check_installed()
    engine.prepare()
    module, cls = engine.ARGUMENTS
    assert engine.trainer_class().__module__.startswith(module.partition(".")[0])
    assert set(engine.argument_fields()) >= {"learning_rate", "max_steps", "use_cpu"}
    assert getattr(importlib.import_module(module), cls)


@dataclass
class Kept:
    """A TrainingArguments class of a third engine, which keeps what it is given."""

    output_dir: str
    use_cpu: bool = False
    ddp_backend: str | None = None
    deepspeed: dict | None = None


class ThirdEngine(engines.Engine):
    """What a file of asr/engines has to say."""

    LIBRARIES = "nothing"
    ARGUMENTS = (__name__, "Kept")

    def prepare(self):
        pass

    def trainer_class(self):
        return object

    def placement(self, topology):
        return {"use_cpu": topology.device == "cpu"}

    def trainer_options(self, gaudi_config):
        return {}

    def divides_by_accumulation(self, args):
        return False


def test_a_third_engine_is_a_class_and_gets_what_the_topology_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    given = {"output_dir": "out", "logging_dir": str(tmp_path)}
    assert ThirdEngine().training_arguments(given, Topology()) == Kept("out", use_cpu=True)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path)  # its class has no logging_dir, as that of transformers 5
    args = ThirdEngine().training_arguments(given, Topology(backend="gloo", deepspeed={"zero_optimization": {"stage": 2}}))
    assert (args.ddp_backend, args.deepspeed) == ("gloo", {"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize("name", EVERY_ENGINE)
def test_the_topology_says_where(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    args = engines.engine(name).training_arguments({"output_dir": str(tmp_path), "logging_dir": str(tmp_path / "tb")}, Topology())
    assert (args.use_cpu, str(args.device)) == (True, "cpu")
    assert vars(args).get("logging_dir", os.environ["TENSORBOARD_LOGGING_DIR"]) == str(tmp_path / "tb")


def test_the_gaudi_engine_is_for_cpu_and_hpu():
    class Elsewhere:
        device, use_habana, use_lazy_mode = "cuda", False, False

    with pytest.raises(ConfigError, match=r"^trainer\.engine: gaudi trains on cpu and hpu; on cuda transformers does"):
        engines.engine("gaudi").placement(Elsewhere)
    Elsewhere.device, Elsewhere.use_habana, Elsewhere.use_lazy_mode = "hpu", True, True
    assert engines.engine("gaudi").placement(Elsewhere) == {"use_cpu": False, "use_habana": True, "use_lazy_mode": True}
    assert engines.engine("transformers").placement(Elsewhere) == {"use_cpu": False}


def test_the_ctc_kernel_is_the_gaudi_engine_s_on_an_hpu(monkeypatch):
    monkeypatch.setattr(gaudi, "ctc_kernel", lambda: "its own")
    on_hpu, on_cpu = SimpleNamespace(use_habana=True), SimpleNamespace(use_habana=False)
    assert [engines.engine("gaudi").ctc_kernel(args) for args in (on_hpu, on_cpu)] == ["its own", None]
    assert engines.engine("transformers").ctc_kernel(on_hpu) is None


@pytest.mark.parametrize("name", EVERY_ENGINE)
def test_a_combination_that_the_arguments_refuse_is_a_configuration_error(name, tmp_path):
    clash = {"output_dir": str(tmp_path), "load_best_model_at_end": True, "save_strategy": "epoch"}
    with pytest.raises(ConfigError, match=r"^trainer\.args: .*load_best_model_at_end"):
        engines.engine(name).training_arguments(clash, Topology())


def test_an_unknown_engine_names_the_key_and_the_nearest():
    with pytest.raises(ConfigError, match=r"^engine: 'transformer' is not one of gaudi, transformers\. Did you mean transformers\?"):
        CTCTraining(engine="transformer")
    with pytest.raises(ConfigError, match=r"^engine: '__init__' is not one of"):
        engines.engine("__init__")


@pytest.mark.parametrize(
    ("name", "cls"),
    [pytest.param("gaudi", "GaudiTrainingArguments", marks=pytest.mark.optimum_habana), ("transformers", "TrainingArguments")],
)
def test_an_unknown_argument_names_the_engine_s_own_class(name, cls):
    with pytest.raises(ConfigError, match=rf"^args\.learning_rat: {cls} has no such field\. Did you mean learning_rate\?"):
        CTCTraining(engine=name, args={"learning_rat": 1})


@pytest.mark.optimum_habana
def test_an_argument_of_the_other_engine_says_so():
    with pytest.raises(ConfigError, match=r"TrainingArguments has no such field; it belongs to trainer\.engine=gaudi"):
        CTCTraining(engine="transformers", args={"use_hpu_graphs_for_training": True})


HIDE = '''
import sys


class Without:
    """A finder for which some packages aren't there."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("optimum", "habana_frameworks")
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
'''


@pytest.fixture
def without_optimum(tmp_path):
    """The environment of a Python that has no optimum-habana, whatever is installed."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDE)
    return {"PYTHONPATH": f"{tmp_path / 'hidden'}:{ROOT}"}


@pytest.mark.slow
def test_a_run_without_optimum_habana(launch, tmp_path, without_optimum):
    (tmp_path / "work").mkdir()
    short = [*TINY, "trainer.args.max_steps=1", "trainer.args.save_strategy=no", "dataset.max_eval_samples=2", "hydra.run.dir=r"]
    done = launch(tmp_path / "work", *short, "trainer.engine=transformers", "gaudi_config=wav2vec2", environment=without_optimum)
    assert done.code == 0, done.err
    log = (tmp_path / "work" / "r" / "run.log").read_text()
    assert "importing torch and transformers: about ten seconds" in log
    assert "trainer: transformers.trainer.Trainer on cpu" in log
    assert "gaudi_config acts on nothing with trainer.engine=transformers: use_fused_adam, use_fused_clip_norm, use_torch_autocast" in log
    assert list((tmp_path / "work" / "r" / "tensorboard").glob("events.*"))


def test_the_gaudi_engine_without_optimum_habana_says_what_to_install_at_once(launch, tmp_path, without_optimum):
    (tmp_path / "work").mkdir()
    done = launch(tmp_path / "work", *TINY, "trainer.engine=gaudi", environment=without_optimum)
    assert done.code == 2
    assert "error: trainer.engine: optimum-habana is not installed: pip install 'asr-gaudi[gaudi]'" in done.err
    assert done.outputs == []


def test_the_story_is_told_by_the_installed_engine(tmp_path):
    made, _ = built(tmp_path, f"trainer.engine={INSTALLED_ENGINES[-1]}")
    assert class_path(made) == "transformers.trainer.Trainer"
    assert type(made).__name__ == "SpeechTrainer"
    assert made.model_accepts_loss_kwargs is False
