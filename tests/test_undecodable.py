"""How much audio may turn out unreadable, over ranks and epochs, before a run gives up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_trainer import built

from asr.errors import DataError
from asr.trainer import Forwarded
from asr.undecodable import Undecodable, check


class Split:
    def __init__(self, max_bad_fraction):
        self.max_bad_fraction = max_bad_fraction

    def __len__(self):
        return 20


class Others:
    """What the other ranks say, in turn."""

    def __init__(self, *says):
        self.says = list(says)

    def gathered(self, said):
        return [said, self.says.pop(0)]


def test_an_utterance_counts_once_whichever_rank_meets_it_again():
    forwarded, others = {"train": Forwarded(), "eval": Forwarded()}, Others([], [("x", "cut short.")], [("z", "cut short.")])
    rank = Undecodable(SimpleNamespace(forwarded=forwarded, train_dataset=Split(0.1)), others)
    forwarded["train"].bad["x"] = "cut short."
    assert rank.count() == 1
    rank.act(1)
    assert rank.count() == 0
    rank.act(0)  # nobody has met anything: nothing is exchanged
    forwarded["train"].bad["y"] = "gone."
    rank.act(2)  # the other rank has met x, which it was dealt in the next epoch
    assert sorted(rank.known["train"]) == ["x", "y"]
    with pytest.raises(
        DataError, match=r"3 of 20 utterances of the training split can't be decoded, .*\(0\.1\) allows: x: cut short; y: gone; z"
    ):
        rank.act(1)
    assert others.says == []


def test_the_bound_itself_is_allowed_and_the_list_is_cut():
    data = Split(0.5)
    check({str(i): "gone" for i in range(10)}, data, "eval")
    with pytest.raises(
        DataError, match=r"11 of 20 utterances of the evaluation .* and 3 more. manifest/eval\.undecodable\.jsonl"
    ) as raised:
        check({str(i): "gone" for i in range(11)}, data, "eval")
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("phase", ["train", "eval"])
def test_a_trainer_stops_at_the_step_or_the_evaluation_that_is_too_much(tmp_path, phase):
    def gone(rows):
        return (*(replace(u, audio=tmp_path / "gone.wav") for u in rows[:2]), *rows[2:])

    made, _ = built(tmp_path, "trainer.args.save_strategy=no", split="test", on_bad="drop", utterances=gone)
    made.train_dataset.max_bad_fraction = made.eval_dataset.max_bad_fraction = 1 / 24
    with pytest.raises(DataError, match=f"of the {'training' if phase == 'train' else 'evaluation'} split can't be decoded.*gone.wav"):
        made.train() if phase == "train" else made.evaluate()
    data = made.train_dataset if phase == "train" else made.eval_dataset
    assert sorted(made.undecodable.known[phase]) == sorted(u.id for u in data.utterances[:2])
