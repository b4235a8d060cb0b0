"""Word, character and match error rates, and every utterance's own errors.

In: token ids of an evaluation and the references. Out: corpus rates through evaluate modules that load
offline (their work is jiwer's), and the lines of predictions.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.errors import ConfigError, DataError, did_you_mean
from asr.sources import Utterance

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import EvalPrediction

ERROR_RATE = Path(__file__).resolve().parent / "evaluate_modules" / "error_rate.py"
BUILT_IN = ("wer", "cer", "mer")


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a metric that is neither ours nor a local file: modules of the hub are remote code."""
    if not names:
        raise ConfigError(f"is empty; choose from {', '.join(BUILT_IN)}.", key="eval_metrics")
    for name in names:
        if name not in BUILT_IN and not (str(name).endswith(".py") and Path(name).is_file()):
            known = ", ".join(BUILT_IN)
            raise ConfigError(
                f"{name!r} is not one of {known}, nor the .py file of an evaluate module.{did_you_mean(str(name), BUILT_IN)}",
                key="eval_metrics",
            )


def load(name: str) -> Any:
    """Return `compute(predictions=..., references=...)` of one of our rates, or of a module in a local file."""
    import evaluate

    try:
        where = (str(ERROR_RATE), name) if name in BUILT_IN else (str(Path(name).resolve()),)
        module = evaluate.load(*where, keep_in_memory=True)
    except (OSError, ImportError, ValueError, SyntaxError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the evaluate module {name!r} can't be loaded: {reason}", key="trainer.eval_metrics") from error
    return module.compute


def word_errors(reference: str, hypothesis: str) -> int:
    """Return substitutions, deletions and insertions of words together.

    >>> word_errors("one two", "one three four")
    2
    """
    import jiwer

    counted = jiwer.process_words(reference, hypothesis)
    return int(counted.substitutions + counted.deletions + counted.insertions)


@dataclass
class Scorer:
    """Trainer's `compute_metrics`, batch by batch: decodes, normalises both sides alike, scores, and keeps the predictions.

    `predictions` of a batch are losses [utterances] and token ids [utterances, frames]; its `label_ids` are
    row numbers in the manifest, so that references come from the transcripts and not from what the tokenizer
    could spell of them. Row numbers below zero are fillers and count for nothing. The loss is the mean over utterances
    with a finite one: CTC's is infinite where labels don't fit into the frames, which `num_infinite_losses` counts.
    A decoder's is the mean over labels: `weights` has their numbers.

    Of a batch only text and losses are kept, so that an evaluation takes no more memory with more frames or a larger vocabulary.
    """

    utterances: Sequence[Utterance]
    references: Sequence[str]
    decode: Callable[[NDArray[Any]], list[str]]
    """Token ids [rows, tokens] to text; what is below zero is the loop's padding."""
    normalise: Callable[[str], str]
    metric_names: Sequence[str] = ("wer", "cer")
    weights: Sequence[int] | None = None
    """What each row's loss counts for, such as its number of labels; None weighs them alike."""
    searches: bool = False
    """Predictions have a search's tokens after the greedy ones: those are scored, and what the greedy ones give beside: <name>_greedy."""
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._metrics = {name: load(name) for name in self.metric_names}
        self.begin()

    def begin(self) -> None:
        """Forget what an evaluation has heard: the next batch is the first of another."""
        self._heard: dict[int, str] = {}
        self._greedy: dict[int, str] = {}
        self._losses: dict[int, float] = {}

    def __call__(self, evaluated: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Take a batch in; return the scores of all batches once `compute_result` says that it is the last."""
        losses, tokens, *searched = map(_on_host, evaluated.predictions)
        rows = _on_host(evaluated.label_ids)
        if self.searches:
            self._greedy |= self._read(tokens, rows)
        self._take_in(losses, searched[0] if self.searches else tokens, rows)
        if not compute_result:
            return {}
        try:
            return self._scores()
        finally:
            self.begin()

    def _take_in(self, losses: NDArray[Any], tokens: NDArray[Any], rows: NDArray[Any]) -> None:
        real = rows >= 0
        numbers = rows[real].tolist()
        # a row that comes twice counts once
        self._heard |= self._read(tokens, rows)
        self._losses |= zip(numbers, losses[real].tolist(), strict=True)

    def _read(self, tokens: NDArray[Any], rows: NDArray[Any]) -> dict[int, str]:
        """Return the text of each row that counts, by its number."""
        real = rows >= 0
        return dict(zip(rows[real].tolist(), map(self.normalise, self.decode(tokens[real].astype(int))), strict=True))

    def _scores(self) -> dict[str, float]:
        if not self._heard:
            raise DataError("no utterance of the evaluation could be decoded; run.log names each with its problem.")
        order = sorted(self._heard)
        said, heard = [self.references[i] for i in order], [self._heard[i] for i in order]
        self.predictions = [self._line(i, self._heard[i]) for i in order] if self._metrics else []
        finite = {row: value for row, value in self._losses.items() if math.isfinite(value)}
        weights = {row: 1 if self.weights is None else self.weights[row] for row in finite}
        total = sum(weights.values())
        scores: dict[str, float] = {"loss": sum(value * weights[row] for row, value in finite.items()) / total if total else math.nan}
        if len(finite) < len(self._losses):
            scores["num_infinite_losses"] = len(self._losses) - len(finite)
        for name, compute in self._metrics.items():
            result = compute(predictions=heard, references=said)
            scores |= result if isinstance(result, dict) else {Path(name).stem: result}
            if self.searches:
                result = compute(predictions=[self._greedy[i] for i in order], references=said)
                greedy = result if isinstance(result, dict) else {Path(name).stem: result}
                scores |= {f"{key}_greedy": value for key, value in greedy.items()}
        return scores

    def _line(self, row: int, hypothesis: str) -> dict[str, Any]:
        utterance, reference = self.utterances[row], self.references[row]
        return {
            "id": utterance.id,
            "reference": reference,
            "hypothesis": hypothesis,
            **({"greedy": self._greedy[row]} if self.searches else {}),
            "seconds": round(utterance.seconds or 0.0, 3),
            "errors": word_errors(reference, hypothesis),
        }


def _on_host(values: torch.Tensor | NDArray[Any]) -> NDArray[Any]:
    """Return what a batch holds as NumPy's: a loop that keeps batches gives that, one that hands them on gives tensors of its device."""
    import numpy as np

    return np.asarray(values if isinstance(values, np.ndarray) else values.cpu())
