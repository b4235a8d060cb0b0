"""What is parsed from source equals what the classes say when they are imported."""

import dataclasses
import importlib

import pytest
from conftest import EVERY_ENGINE

from asr import engines, signatures
from asr.frames import MODEL_TYPES


@pytest.fixture(scope="module", params=EVERY_ENGINE)
def engine(request):
    return engines.engine(request.param)


@pytest.fixture
def parsed(engine):
    return signatures.dataclass_fields(*engine.ARGUMENTS)


def test_the_fields_are_those_of_the_imported_class(engine, parsed):
    engine.prepare()
    module, name = engine.ARGUMENTS
    real = getattr(importlib.import_module(module), name)
    assert set(parsed) == {field.name for field in dataclasses.fields(real) if field.init}


def test_enums_have_their_values(parsed):
    from transformers import IntervalStrategy, SchedulerType

    assert set(parsed["lr_scheduler_type"].values) == {item.value for item in SchedulerType}
    assert set(parsed["eval_strategy"].values) == {item.value for item in IntervalStrategy}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("learning_rate", [1, 1e-3], ["fast", True, None, [1]]),
        ("per_device_train_batch_size", [1], [1.5, "8", True]),
        ("full_determinism", [True, False], ["yes", 1]),
        ("save_total_limit", [None, 3], ["all"]),
        ("lr_scheduler_type", ["cosine"], ["cosin", 1]),
        ("report_to", ["none", ["tensorboard"], None], [3]),
        ("optim_args", ["a=1", None], [1]),
    ],
)
def test_values_are_judged_by_their_annotation(parsed, name, good, bad):
    assert all(parsed[name].accepts(value) for value in good)
    assert not any(parsed[name].accepts(value) for value in bad)


def test_model_types_are_those_of_the_library():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

    read = signatures.string_dict
    assert read("transformers.models.auto.modeling_auto", "MODEL_FOR_CTC_MAPPING_NAMES") == dict(MODEL_FOR_CTC_MAPPING_NAMES)
    assert read("transformers.models.auto.configuration_auto", "CONFIG_MAPPING_NAMES") == dict(CONFIG_MAPPING_NAMES)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_config_s_parameters_and_defaults_are_those_of_the_class(model_type):
    """Configs of transformers 4.55 have an __init__, those of 5 are dataclasses."""
    from transformers import AutoConfig

    from asr.pretrained import _config_class

    real = AutoConfig.for_model(model_type)
    assert {"hidden_size", "mask_time_prob"} <= set(signatures.constructor_parameters(*_config_class(model_type)))
    defaults = signatures.constructor_defaults(*_config_class(model_type))
    assert defaults["hidden_size"] == real.hidden_size
    comparable = {n: v for n, v in defaults.items() if isinstance(v, (int, float, str)) and not n.endswith("token_id")}
    assert len(comparable) > 20
    assert {n: v for n, v in comparable.items() if getattr(real, n, v) != v} == {}


def test_a_package_that_is_not_installed_has_no_fields():
    assert signatures.dataclass_fields("nosuchpackage.module", "Class") == {}
    assert signatures.constructor_parameters("nosuchpackage", "Class") == ()
    assert signatures.string_dict("nosuchpackage", "NAMES") == {}
