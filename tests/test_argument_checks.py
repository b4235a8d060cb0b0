"""Training arguments that are refused before anything is written, each by its key."""

import pytest
from conftest import EVERY_ENGINE, INSTALLED_ENGINES

from asr import argument_checks, arguments, engines
from asr.errors import ConfigError
from asr.trainer import CTCTraining


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"warmup_ratio": 2}, r"^args\.warmup_ratio: 2 is out of range"),
        ({"warmup_ratio": "fast"}, r"^args\.warmup_ratio: 'fast' is not of type float"),
        ({"warmup_steps": -0.5}, r"^args\.warmup_steps: -0\.5 is "),
        ({"per_gpu_train_batch_size": 0}, r"^args\.per_gpu_train_batch_size: 0 is out of range"),
        ({"group_by_length": "yes"}, r"^args\.group_by_length: 'yes' is not of type"),
        ({"warmup_ratioo": 0.1}, "Did you mean warmup_ratio"),
        ({"train_sampling_strateg": "random"}, "Did you mean train_sampling_strategy"),
    ],
)
def test_values_are_checked_whatever_the_spelling(engine, args, message):
    with pytest.raises(ConfigError, match=message):
        CTCTraining(engine=engine, args=args)


@pytest.mark.parametrize("name", sorted(argument_checks.ELSEWHERE))
def test_arguments_decided_elsewhere_say_where(name):
    with pytest.raises(ConfigError, match=rf"^args\.{name}: is not set here"):
        CTCTraining(engine=INSTALLED_ENGINES[0], args={name: None})


@pytest.mark.optimum_habana
def test_ranges_and_refusals_name_real_arguments():
    every = [engines.engine(name, generates=generates) for name in engines.names() for generates in (False, True)]
    fields = {name for engine in every for name in engine.argument_fields()}
    assert set(argument_checks.RANGES) | set(argument_checks.ELSEWHERE) <= fields | arguments.SPELLINGS
