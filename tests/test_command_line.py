"""What is asked of Hydra on a command line: grids and flags, and what is refused of them."""

import pytest

from asr import command_line
from asr.errors import ConfigError


def test_a_small_grid_is_checked_whole_and_a_large_one_value_by_value():
    pairs = [["a=1", "b=x", "c=5"], ["a=1", "b=y", "c=5"], ["a=2", "b=x", "c=5"], ["a=2", "b=y", "c=5"]]
    assert command_line.sweep_variants(["a=1,2", "b=x,y", "c=5"]) == pairs
    variants = command_line.sweep_variants(["a=range(0,20)", "b=choice(x,y,z)", "experiment=glob(*)"])
    assert len(variants) == 20 + 3 - 1
    assert {"b=x", "b=y", "b=z"} == {word for variant in variants for word in variant if word.startswith("b=")}


def test_a_sweep_without_end_is_refused_before_it_is_listed():
    for swept in ("seed=range(0,1000000000)", "seed=shuffle(range(0,1000000000))", "seed=range(0,1,1e-12)"):
        with pytest.raises(ConfigError, match=r"^seed: a sweep of more than 10000 values"):
            command_line.read_command_line(["-m", swept])
    with pytest.raises(ConfigError, match=r"^the sweep has 1000000 jobs"):
        command_line.read_command_line(["-m", "seed=range(0,1000)", "trainer.args.max_steps=range(1,1001)"])
    with pytest.raises(ConfigError, match=r"must not be zero"):
        command_line.read_command_line(["-m", "seed=range(0,3,0)"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nosuch"], "unrecognized arguments: --nosuch"),
        (["--config-dir", "nowhere"], "--config-dir: there is no folder 'nowhere'"),
        (["--config-path", ""], "--config-path: there is no folder ''"),
        (["--experimental-rerun", "a.pickle"], "--experimental-rerun unpickles a file"),
        (["seed=1\0"], "holds a null byte"),
        (["x=" + "a" * 20_000], "is 20002 characters long"),
    ],
)
def test_a_flag_that_can_t_be_followed_is_refused_in_a_line(words, message):
    with pytest.raises(ConfigError) as refused:
        command_line.read_command_line(words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
