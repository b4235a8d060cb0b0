"""Utterances whose audio turns out unreadable when their batch comes: counted over all ranks, up to dataset.max_bad_fraction.

In: what each rank has met. Out: a DataError with the list, on every rank at once, when they are too many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asr.agreement import Agreement
from asr.errors import DataError, listed


def check(bad: Mapping[str, str], dataset: Any, phase: str) -> None:
    """Raise DataError where `bad`, problems by utterance id, are more than their share of the split's utterances."""
    total = len(dataset)
    if len(bad) <= dataset.max_bad_fraction * total:
        return
    what = {"train": "training", "eval": "evaluation"}[phase]
    problems = listed([f"{name}: {problem.rstrip('.')}" for name, problem in sorted(bad.items())], by="; ")
    raise DataError(
        f"{len(bad)} of {total} utterances of the {what} split can't be decoded, more than dataset.max_bad_fraction "
        f"({dataset.max_bad_fraction:g}) allows: {problems}. manifest/{phase}.undecodable.jsonl has those met so far. "
        "Mend the files, or allow more."
    )


class Undecodable:
    """Both splits' bad utterances as the ranks of a run know them together; takes part in what they agree on at a step's end.

    An utterance is met by another rank in the next epoch, so that ranks tell each other ids: sums would count it twice.
    """

    def __init__(self, trainer: Any, agreement: Agreement) -> None:
        self.trainer = trainer
        self.agreement = agreement
        self.known: dict[str, dict[str, str]] = {"train": {}, "eval": {}}
        """Problems by utterance id, of all ranks."""
        self._told = 0

    def count(self) -> int:
        """Return how many this rank has met in training since it last told the others."""
        return len(self._met("train")) - self._told

    def act(self, total: int) -> None:
        """Tell each other what is new, if anything is; raise DataError on every rank when that is too much."""
        if total:
            met = self._met("train")
            self._tell("train", met[self._told :])
            self._told = len(met)

    def after_evaluation(self) -> None:
        """Tell each other what an evaluation has met, as `act` does for training."""
        self._tell("eval", self._met("eval"))

    def _met(self, phase: str) -> list[tuple[str, str]]:
        return list(self.trainer.forwarded[phase].bad.items())

    def _tell(self, phase: str, new: list[tuple[str, str]]) -> None:
        for of_rank in self.agreement.gathered(new):
            self.known[phase].update(of_rank)
        check(self.known[phase], self.trainer.train_dataset if phase == "train" else self.trainer.eval_dataset, phase)
