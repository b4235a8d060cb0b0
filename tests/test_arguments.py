"""Training arguments in either spelling, against the fields of transformers 4.55 and of 5 and against what is installed."""

import math

import pytest
from conftest import EVERY_ENGINE, composed

from asr import arguments, engines
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.trainer import CTCTraining

OLD = {"warmup_ratio", "warmup_steps", "group_by_length", "adafactor", "optim", "include_inputs_for_metrics", "report_to", "output_dir"}
OLD |= {*arguments.RENAMED, *arguments.DROPPED, "torch_compile_backend", "per_device_train_batch_size", "per_device_eval_batch_size"}
NEW = {"warmup_steps", "train_sampling_strategy", "optim", "include_for_metrics", "report_to", "output_dir", *arguments.RENAMED.values()}


@pytest.mark.parametrize(
    ("given", "old", "new"),
    [
        ({"warmup_ratio": 0.1}, {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_steps": 58}, {"warmup_steps": 58}, {"warmup_steps": 58}),
        ({"warmup_steps": 58.0}, {"warmup_steps": 58}, {"warmup_steps": 58.0}),
        ({"warmup_ratio": 0, "warmup_steps": 5}, {"warmup_steps": 5}, {"warmup_steps": 5}),
        ({"warmup_ratio": 0.2, "warmup_steps": 0}, {"warmup_ratio": 0.2}, {"warmup_steps": 0.2}),
        ({"warmup_ratio": 0.0, "warmup_steps": 0}, {"warmup_steps": 0}, {"warmup_steps": 0}),
        ({"group_by_length": True}, {"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"group_by_length": False}, {"group_by_length": False}, {"train_sampling_strategy": "random"}),
        ({"train_sampling_strategy": "group_by_length"}, {"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"train_sampling_strategy": "random"}, {"group_by_length": False}, {"train_sampling_strategy": "random"}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}, {"activation_checkpointing": True}),
        ({"activation_checkpointing": True}, {"gradient_checkpointing": True}, {"activation_checkpointing": True}),
        ({"per_gpu_train_batch_size": 4}, {"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 4}),
        ({"adafactor": True}, {"adafactor": True}, {"optim": "adafactor"}),
        ({"adafactor": False}, {"adafactor": False}, {}),
        ({"include_inputs_for_metrics": True}, {"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}),
        ({"save_safetensors": True}, {"save_safetensors": True}, {}),
        ({"fp16_backend": "auto"}, {"fp16_backend": "auto"}, {}),
        ({"past_index": -1}, {"past_index": -1}, {}),
        ({"report_to": None}, {"report_to": "all"}, {"report_to": "all"}),
        ({"logging_dir": "x", "output_dir": "y"}, {"logging_dir": "x", "output_dir": "y"}, {"logging_dir": "x", "output_dir": "y"}),
    ],
)
def test_either_spelling_serves_either_version(given, old, new):
    assert arguments.installed_spelling(given, OLD) == old
    assert arguments.installed_spelling(given, NEW) == new


def test_a_ratio_of_one_warms_up_all_steps():
    """warmup_steps=1 is one step in transformers 5, which rounds a share of the steps up."""
    share = arguments.installed_spelling({"warmup_ratio": 1}, NEW)["warmup_steps"]
    assert share < 1
    assert all(math.ceil(steps * share) == steps for steps in (1, 3, 572, 10**6))


@pytest.mark.parametrize(
    ("given", "known", "message"),
    [
        ({"save_safetensors": False}, NEW, "always written as safetensors"),
        ({"use_ipex": True}, NEW, "no such argument"),
        ({"past_index": 2}, NEW, "no such argument"),
        ({"push_to_hub_organization": "us"}, NEW, "hub_model_id"),
        ({"train_sampling_strategy": "sequential"}, OLD, "needs transformers 5"),
        ({"warmup_ratio": 0.2, "warmup_steps": 58}, OLD, r"^args\.warmup_ratio: args\.warmup_steps is 58 already"),
        ({"warmup_ratio": 0.2, "warmup_steps": 58}, NEW, r"^args\.warmup_ratio: args\.warmup_steps is 58 already"),
        ({"train_sampling_strategy": "random", "group_by_length": True}, NEW, "says the same as train_sampling_strategy"),
        ({"optim": "sgd", "adafactor": True}, NEW, "says the same as optim"),
    ],
)
def test_what_has_no_counterpart_or_two_says_so(given, known, message):
    with pytest.raises(ConfigError, match=message):
        arguments.installed_spelling(given, known)


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_every_renamed_or_dropped_argument_is_accepted_or_refused_by_name(engine):
    """With the fields that are really installed: nothing falls through as an unknown field, and harmless values pass."""
    known = engines.engine(engine).argument_fields()
    for name in sorted({*arguments.RENAMED, *arguments.RENAMED.values(), *arguments.DROPPED, *arguments.CHANGED}):
        for value in arguments.DROPPED[name].harmless if name in arguments.DROPPED else [None]:
            try:
                spelt = arguments.installed(name, value, known)
            except ConfigError:
                assert name in ("train_sampling_strategy", "group_by_length")  # null is neither
            else:
                assert spelt is None or spelt[0] in known, name
    training = CTCTraining(engine=engine, args={"warmup_ratio": 0.1, "per_gpu_eval_batch_size": 2, "gradient_checkpointing": False})
    assert training.args["warmup_ratio"] == 0.1  # what is written down is what was said


@pytest.mark.parametrize("spelling", ["group_by_length=true", "train_sampling_strategy=group_by_length"])
def test_batching_reads_either_spelling(spelling):
    Pipeline.of(composed("batching=longest", f"trainer.args.{spelling}"))
    with pytest.raises(ConfigError, match="with static shapes: rows of like length share a batch already"):
        Pipeline.of(composed(f"trainer.args.{spelling}"))


def test_released_experiments_use_what_both_versions_have():
    args = composed("experiment=spoken_digits_ctc/v1")["trainer"]["args"]
    assert not set(args) & {*arguments.RENAMED, *arguments.DROPPED, *set(arguments.CHANGED) - {"warmup_steps", "report_to"}}
    assert args["warmup_steps"] == math.ceil(0.1 * 572)
