import pytest

from asr.errors import ConfigError, DataError, did_you_mean, said_by


@pytest.mark.parametrize(
    ("word", "candidates", "said"),
    [
        ("layerdop", ["layerdrop", "hidden"], " Did you mean layerdrop?"),
        ("learning_rate", ["trainer.args.learning_rate"], " Did you mean trainer.args.learning_rate?"),
        ("learning_rte", ["trainer.args.learning_rate"], " Did you mean trainer.args.learning_rate?"),
        ("seed", ["seed"], ""),
        ("xyz", ["layerdrop"], ""),
        ("xyz", [], ""),
    ],
)
def test_did_you_mean(word, candidates, said):
    assert did_you_mean(word, candidates) == said


def test_an_error_goes_under_its_parent():
    assert str(ConfigError("is bad.", key="b").under("a")) == "a.b: is bad."
    assert str(ConfigError("is bad.").under("a")) == "a: is bad."


class Bad:
    def __len__(self):
        return 1

    def __getitem__(self, number):
        raise DataError("a b.wav can't be read: truncated; repair it or leave it out.")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_message_survives_a_loader_worker(workers):
    from torch.utils.data import DataLoader

    with pytest.raises(DataError) as caught:
        list(DataLoader(Bad(), num_workers=workers))
    assert said_by(caught.value) == "a b.wav can't be read: truncated; repair it or leave it out."


def test_a_message_keeps_the_ends_of_what_is_too_long():
    said = str(ConfigError(f"{'x' * 50_000!r} is not one of a, b.\nalso: seed", key="trainer.engine"))
    assert len(said) < 1000
    assert said.startswith("trainer.engine: 'xxx")
    assert said.endswith("is not one of a, b.\nalso: seed")
