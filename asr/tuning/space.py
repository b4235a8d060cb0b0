"""What a sweep varies: Hydra's sweep grammar as parameters with bounds.

In: hydra.sweeper.params and the command line's overrides. Out: the parameters, and the overrides that every job gets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep

from asr.errors import ConfigError, did_you_mean
from asr.explanations import composing
from asr.runs import flat

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

PARAMS = "hydra.sweeper.params"
EXAMPLE = "'trainer.args.learning_rate=tag(log, interval(1e-4, 1e-2))'"


@dataclass(frozen=True)
class Parameter:
    """A key that a sweep varies: over `choices`, as they are written in an override, or from `low` to `high`, both included."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    @property
    def bounds(self) -> list[str]:
        """The overrides that a launch is checked by: all choices, or both ends."""
        values = self.choices or dict.fromkeys((self.low, self.high))
        return [self.override(value) for value in values]

    def override(self, value: Any) -> str:
        """Return the override that gives the key a value.

        >>> Parameter("seed", low=1, high=5).override(3)
        'seed=3'
        """
        return f"{self.key}={value if self.choices else repr(value)}"

    def value_in(self, override: str) -> Any:
        """Return the value in an override of this key; None where it isn't one of the parameter's."""
        text = override.partition("=")[2]
        if self.choices:
            return text if text in self.choices else None
        try:
            value = type(self.low)(text)
        except ValueError:
            return None
        return value if self.low <= value <= self.high else None

    def shown(self, value: Any) -> Any:
        """Return a value as YAML has it: a choice is kept as it is written."""
        return OverridesParser.create().parse_override(self.override(value)).value() if self.choices else value

    def distribution(self) -> BaseDistribution:
        """Return the parameter as Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if isinstance(self.low, int):
            return IntDistribution(self.low, int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


def read(params: Mapping[str, Any], overrides: Sequence[str], loader: Any) -> tuple[list[Parameter], list[str]]:
    """Return what is varied, and the overrides that are the same for all jobs; the command line goes before hydra.sweeper.params.

    `loader` lists the options of a group for glob(...): Hydra's, or what has its get_group_options. Raises ConfigError for a sweep that
    isn't one.
    """
    saved = [f"{key}={_text(key, value)}" for key, value in flat(params).items() if value is not None]
    with composing([*saved, *overrides]):
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*saved, *overrides])
    varied: dict[str, Parameter] = {}
    fixed: dict[str, str] = {}
    for item in parsed:
        key = item.get_key_element()
        name = key.lstrip("+~")
        varied.pop(name, None)
        fixed.pop(name, None)
        if not item.is_sweep_override():
            fixed[name] = str(item.input_line)
        elif item.is_hydra_override() or name == "resume":
            raise ConfigError("is no key that a sweep can vary.", key=name)
        else:
            varied[name] = _parameter(key, item)
    return list(varied.values()), list(fixed.values())


def check(parameters: Sequence[Parameter]) -> None:
    """Raise ConfigError for a sweep that varies nothing."""
    if not parameters:
        raise ConfigError(f"the sweep varies nothing; give a key a range, on the command line or here, such as {EXAMPLE}.", key=PARAMS)


def overrides_to_check(parameters: Sequence[Parameter], fixed: Sequence[str]) -> list[list[str]]:
    """Return override lists that hold both bounds, or each choice, of every parameter at least once; the first is of all the first ones.

    A key that doesn't exist, or a value out of range, is one of theirs.
    """
    first = [parameter.bounds[0] for parameter in parameters]
    others = ([*first[:i], bound, *first[i + 1 :]] for i, parameter in enumerate(parameters) for bound in parameter.bounds[1:])
    return [[*fixed, *chosen] for chosen in (first, *others)]


def _text(key: str, value: Any) -> str:
    if isinstance(value, (list, dict)):
        raise ConfigError(f"is a {type(value).__name__}; write a sweep as text, such as choice(8, 16).", key=f"{PARAMS}.{key}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parameter(key: str, item: Override) -> Parameter:
    swept = item.value()
    tags = swept.tags if isinstance(swept, Sweep) else set()
    for tag in sorted(tags - {"log"}):
        raise ConfigError(f"the tag {tag!r} means nothing here; log is the only one.{did_you_mean(tag, ['log'])}", key=key)
    if isinstance(swept, IntervalSweep):
        return _checked(Parameter(key, low=_number(swept.start), high=_number(swept.end), log=bool(tags)))
    if tags:
        raise ConfigError("log is for an interval: tag(log, interval(1e-4, 1e-2)).", key=key)
    if isinstance(swept, RangeSweep):
        return _checked(_of_range(key, swept))
    choices = tuple(dict.fromkeys(item.sweep_string_iterator()))
    if not choices:
        raise ConfigError("is a sweep over nothing; give it a value.", key=key)
    return Parameter(key, choices=choices)


def _number(value: Any) -> float:
    assert isinstance(value, (int, float))
    return value


def _of_range(key: str, swept: RangeSweep) -> Parameter:
    """Return range(start, stop, step), whose stop isn't one of its values, as Hydra lists it."""
    start, stop, step = _number(swept.start), _number(swept.stop), _number(swept.step)
    if not all(map(math.isfinite, (start, stop, step))) or step == 0:
        raise ConfigError("needs finite numbers, and a step that isn't 0.", key=key)
    steps = math.ceil(round((stop - start) / step, 9)) - 1  # 0.1 + 0.2 is a bit more than 0.3
    if steps < 0:
        raise ConfigError("is a sweep over nothing; give it a value.", key=key)
    ends = sorted((start, start + steps * step))
    if all(isinstance(number, int) for number in (start, stop, step)):
        return Parameter(key, low=int(ends[0]), high=int(ends[1]), step=abs(step))
    return Parameter(key, low=float(ends[0]), high=round(float(ends[1]), 12), step=abs(float(step)))


def _checked(parameter: Parameter) -> Parameter:
    low, high = parameter.low, parameter.high
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError("needs finite numbers.", key=parameter.key)
    if low > high:
        raise ConfigError(f"goes from {low} down to {high}; name the smaller one first.", key=parameter.key)
    if parameter.log and low <= 0:
        raise ConfigError(f"begins at {low}; on a logarithmic scale it must be above 0.", key=parameter.key)
    return parameter
