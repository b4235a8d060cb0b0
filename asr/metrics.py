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
    from transformers import EvalPrediction, PreTrainedTokenizerBase

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
    """Trainer's `compute_metrics`: decodes, normalises both sides alike, scores, and keeps the predictions.

    `predictions` of the evaluation are losses [utterances] and token ids [utterances, frames]; its `label_ids` are
    row numbers in the manifest, so that references come from the transcripts and not from what the tokenizer
    could spell of them. Row numbers below zero are fillers and count for nothing. The loss is the mean over utterances
    with a finite one: CTC's is infinite where labels don't fit into the frames, which `num_infinite_losses` counts.
    """

    utterances: Sequence[Utterance]
    references: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    normalise: Callable[[str], str]
    metric_names: Sequence[str] = ("wer", "cer")
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._metrics = {name: load(name) for name in self.metric_names}

    def __call__(self, evaluated: EvalPrediction) -> dict[str, float]:
        (losses, tokens), rows = evaluated.predictions, evaluated.label_ids
        real = rows >= 0
        if not real.any():
            raise DataError("no utterance of the evaluation could be decoded; run.log names each with its problem.")
        losses, tokens, rows = losses[real], tokens[real].astype(int), rows[real].tolist()
        tokens[tokens < 0] = self.tokenizer.pad_token_id  # what the evaluation loop pads with
        hypotheses = dict(zip(rows, map(self.normalise, self.tokenizer.batch_decode(tokens)), strict=True))
        loss = dict(zip(rows, losses.tolist(), strict=True))  # a row that comes twice counts once
        order = sorted(hypotheses)
        said, heard = [self.references[i] for i in order], [hypotheses[i] for i in order]
        self.predictions = [self._line(i, hypotheses[i]) for i in order]
        finite = [value for value in loss.values() if math.isfinite(value)]
        scores: dict[str, float] = {"loss": sum(finite) / len(finite) if finite else math.nan}
        if len(finite) < len(loss):
            scores["num_infinite_losses"] = len(loss) - len(finite)
        for name, compute in self._metrics.items():
            result = compute(predictions=heard, references=said)
            scores |= result if isinstance(result, dict) else {Path(name).stem: result}
        return scores

    def _line(self, row: int, hypothesis: str) -> dict[str, Any]:
        utterance, reference = self.utterances[row], self.references[row]
        return {
            "id": utterance.id,
            "reference": reference,
            "hypothesis": hypothesis,
            "seconds": round(utterance.seconds or 0.0, 3),
            "errors": word_errors(reference, hypothesis),
        }
