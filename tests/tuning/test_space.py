"""Hydra's sweep grammar as parameters with bounds."""

import pytest

from asr.errors import ConfigError
from asr.tuning import space
from asr.tuning.space import Parameter

PARAMETERS = {
    "a=interval(1,2.5)": Parameter("a", low=1.0, high=2.5),
    "a=tag(log, interval(1e-4, 1e-2))": Parameter("a", low=1e-4, high=1e-2, log=True),
    "a=int(interval(1,8))": Parameter("a", low=1, high=8),
    "a=int(tag(log, interval(1,64)))": Parameter("a", low=1, high=64, log=True),
    "a=range(1,10,3)": Parameter("a", low=1, high=7, step=3),
    "a=range(9,1,-4)": Parameter("a", low=5, high=9, step=4),
    "a=range(0,0.3,0.1)": Parameter("a", low=0.0, high=0.2, step=0.1),
    "a=shuffle(range(0,5))": Parameter("a", low=0, high=4, step=1),
    "a=choice(8,16)": Parameter("a", choices=("8", "16")),
    "a=null,x,true,'a b',x": Parameter("a", choices=("null", "x", "True", "'a b'")),
    "+a.b=1,2": Parameter("+a.b", choices=("1", "2")),
}


@pytest.mark.parametrize("override", PARAMETERS)
def test_a_sweep_is_a_parameter(override):
    assert space.read({}, [override], None) == ([PARAMETERS[override]], [])


@pytest.mark.parametrize("override", PARAMETERS)
def test_a_parameter_is_optuna_s_distribution(override):
    pytest.importorskip("optuna")
    parameter = PARAMETERS[override]
    found = parameter.distribution()
    assert found.choices == parameter.choices if parameter.choices else (found.low, found.high) == (parameter.low, parameter.high)
    for bound in parameter.bounds:
        value = parameter.value_in(bound)
        assert found._contains(found.to_internal_repr(value))
        assert parameter.override(value) == bound


def test_values_that_are_not_the_parameter_s_are_known():
    rate, size = PARAMETERS["a=interval(1,2.5)"], PARAMETERS["a=choice(8,16)"]
    assert [rate.value_in(f"a={text}") for text in ("1.5", "3", "x", "nan", "")] == [1.5, None, None, None, None]
    assert [size.value_in(f"a={text}") for text in ("8", "9", "")] == ["8", None, None]


@pytest.mark.parametrize(
    ("params", "overrides", "message"),
    [
        ({}, ["a=interval(2,1)"], r"^a: goes from 2\.0 down to 1\.0"),
        ({}, ["a=interval(0,inf)"], r"^a: needs finite numbers"),
        ({}, ["a=range(0,1,0)"], r"^a: needs finite numbers, and a step"),
        ({}, ["a=range(1,1)"], r"^a: is a sweep over nothing"),
        ({}, ["a=tag(log, interval(0,1))"], r"^a: begins at 0\.0; on a logarithmic scale it must be above 0"),
        ({}, ["a=tag(lgo, interval(1,2))"], r"^a: the tag 'lgo' means nothing here; .*Did you mean log\?"),
        ({}, ["a=tag(log, choice(1,2))"], r"^a: log is for an interval"),
        ({}, ["resume=never,auto"], r"^resume: is no key that a sweep can vary"),
        ({"hydra.verbose": "true,false"}, [], r"^hydra\.verbose: is no key that a sweep can vary"),
        ({"a": [8, 16]}, [], r"^hydra\.sweeper\.params\.a: is a list; write a sweep as text, such as choice\(8, 16\)"),
        ({"a": "interval(1"}, [], r"^a: .*can't be parsed"),
        ({"a": "interval(x,2)"}, [], r"."),
    ],
)
def test_a_sweep_that_is_none_is_refused(params, overrides, message):
    with pytest.raises(ConfigError, match=message):
        space.read(params, overrides, None)


def test_later_ones_win_and_the_rest_is_every_job_s():
    params = {"a": "interval(1,2)", "b": {"c": "choice(1,2)"}, "d": 5, "e": None, "f": True}
    parameters, fixed = space.read(params, ["+sweep=optuna", "a=3", "~g", "d=1,2", "x=1", "x=2"], None)
    assert [parameter.key for parameter in parameters] == ["b.c", "d"]
    assert fixed == ["f=true", "+sweep=optuna", "a=3", "~g", "x=2"]


def test_every_bound_is_looked_at_once_and_no_grid_is_made():
    parameters, fixed = space.read({"a": "interval(1,2)", "b": "choice(x,y,z)", "c": "int(interval(3,3))"}, ["d=4"], None)
    lists = space.overrides_to_check(parameters, fixed)
    assert lists[0] == ["d=4", "a=1.0", "b=x", "c=3"]
    assert lists[1:] == [["d=4", "a=2.0", "b=x", "c=3"], ["d=4", "a=1.0", "b=y", "c=3"], ["d=4", "a=1.0", "b=z", "c=3"]]


def test_a_glob_is_listed():
    class Loader:
        def get_group_options(self, group, results_filter):
            return [f"{group}_a", f"{group}_b", "other"]

    assert space.read({}, ["model=glob(model_*)"], Loader()) == ([Parameter("model", choices=("model_a", "model_b"))], [])
    with pytest.raises(ConfigError, match=r"^model: is a sweep over nothing"):
        space.read({}, ["model=glob(x*)"], Loader())
