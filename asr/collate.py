"""Rows to tensors: audio decoded and turned into the model's inputs, in the loader's workers.

In: a manifest, a feature extractor and label ids. Out: batches padded to their longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asr import audio, features
from asr.sources import Utterance

if TYPE_CHECKING:
    import torch

BATCH_FACTS = "facts"
"""The batch's key that the trainer takes out before the model sees it."""


@dataclass(frozen=True)
class BatchFacts:
    """What the host knows of a batch, so that nobody has to ask the device (a sync) for it.

    `rows`: row numbers in the manifest. `lengths`: real input frames (or samples) of each row. `seconds`: audio of each.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One utterance ready to be padded: `inputs` has shape [frames, features] or [samples]."""

    number: int
    inputs: torch.Tensor
    labels: Sequence[int]
    seconds: float


class UtteranceDataset:
    """A map-style torch dataset: decodes and extracts features when a row is asked for, deterministically."""

    def __init__(self, utterances: Sequence[Utterance], labels: Sequence[Sequence[int]], feature_extractor: Any) -> None:
        self.utterances = utterances
        self.labels = labels
        self.feature_extractor = feature_extractor

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, number: int) -> Row:
        utterance = self.utterances[number]
        waveform = audio.read(utterance.audio, self.feature_extractor.sampling_rate)
        return Row(number, features.extract(self.feature_extractor, waveform), self.labels[number], utterance.seconds or 0.0)


@dataclass(frozen=True)
class CTCCollator:
    """Pads rows on the right: inputs with the extractor's padding value, labels with -100.

    Gives float inputs [batch, frames, features] or [batch, samples] under the extractor's name, int64
    `attention_mask` [batch, frames] where the model takes one, int64 `labels` [batch, labels], and `facts`.
    """

    input_name: str
    padding_value: float
    with_attention_mask: bool

    @classmethod
    def for_extractor(cls, feature_extractor: Any) -> CTCCollator:
        names = feature_extractor.model_input_names
        # group-normed models (wav2vec2-base) were pretrained without a mask; their extractor says so
        return cls(names[0], float(feature_extractor.padding_value), bool(feature_extractor.return_attention_mask))

    def __call__(self, rows: Sequence[Row]) -> Mapping[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        lengths = [row.inputs.shape[0] for row in rows]
        labels = [torch.as_tensor(row.labels, dtype=torch.int64) for row in rows]
        batch: dict[str, Any] = {
            self.input_name: pad_sequence([row.inputs for row in rows], batch_first=True, padding_value=self.padding_value),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }
        if self.with_attention_mask:
            positions = torch.arange(max(lengths))
            batch["attention_mask"] = (positions < torch.tensor(lengths)[:, None]).long()
        facts = BatchFacts(tuple(r.number for r in rows), tuple(lengths), tuple(r.seconds for r in rows))
        return batch | {BATCH_FACTS: facts}
