"""What is parsed from source equals what the classes say when they are imported."""

import dataclasses

import pytest

from asr import gaudi, signatures


@pytest.fixture(scope="module")
def parsed():
    return signatures.dataclass_fields(*gaudi.ARGUMENTS_CLASS)


def test_the_fields_are_those_of_the_imported_class(parsed):
    real = gaudi.optimum_habana().GaudiTrainingArguments
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
        ("group_by_length", [True, False], ["yes", 1]),
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


def test_a_package_that_is_not_installed_has_no_fields():
    assert signatures.dataclass_fields("nosuchpackage.module", "Class") == {}
    assert signatures.constructor_parameters("nosuchpackage", "Class") == ()
    assert signatures.string_dict("nosuchpackage", "NAMES") == {}
