"""The trainer of models that generate: an engine's Seq2SeqTrainer under our batches and losses.

In: an encoder-decoder model, datasets and the trainer node. Out: a Trainer whose evaluations generate text, the same whatever
batch size and padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asr.collate import BATCH_FACTS, BatchFacts
from asr.seq2seq_outputs import batch_loss, utterance_losses
from asr.trainer import SpeechTrainerMixin, SpeechTraining


class Seq2SeqTrainerMixin(SpeechTrainerMixin):
    """Adds losses of real labels only, and generation beside them in evaluations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # as for CTC: ours is a mean over the labels of its batch

    def batch_loss(self, model: Any, inputs: dict[str, Any], facts: BatchFacts, num_items_in_batch: Any) -> Any:
        import torch

        labels = inputs.pop("labels")
        # nothing is generated, and optimum-habana's BART wants to know where the cache stands (modeling_bart.py:425)
        logits = model(**inputs, use_cache=False).logits
        with torch.autocast(logits.device.type, enabled=False):
            return batch_loss(logits, labels, facts, self.args.label_smoothing_factor)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Return no loss, (losses [batch], tokens [batch, tokens]) and, in the labels' place, row numbers [batch].

        Each utterance's own loss travels with its tokens, as for CTC. Labels and the decoder's inputs are kept from the library's
        step, which would otherwise go on from them, or compute a loss of the whole batch.
        """
        import torch

        inputs = dict(inputs)
        facts: BatchFacts = inputs[BATCH_FACTS]
        self._count("eval", facts, inputs)
        labels = inputs["labels"]
        heard = {name: value for name, value in inputs.items() if name not in (BATCH_FACTS, "labels", "decoder_input_ids")}
        if self.args.predict_with_generate:
            _, tokens, _ = super(SpeechTrainerMixin, self).prediction_step(model, heard, False, ignore_keys=ignore_keys)  # type: ignore[misc]
        else:
            tokens = labels.new_empty((len(labels), 0))
        taught = self._prepare_inputs({**heard, "decoder_input_ids": inputs["decoder_input_ids"]})  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            logits = model(**taught, use_cache=False).logits
        losses = utterance_losses(logits, labels)
        return None, (losses, tokens.to(losses.device)), torch.tensor(facts.rows, device=losses.device)


@dataclass(kw_only=True)
class Seq2SeqTraining(SpeechTraining):
    """How a model that generates is trained and scored. args are those of Seq2SeqTrainingArguments."""

    generates = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.args.get("predict_with_generate"):
            self.eval_metrics = []  # nothing is generated: the loss alone is known

    @staticmethod
    def mixin() -> type:
        return Seq2SeqTrainerMixin
