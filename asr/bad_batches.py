"""A batch whose numbers went bad, kept for inspection: made again from its rows, as the model got it.

In: a batch's facts and shape, the dataset and the collator. Out: <name>.safetensors with its tensors, <name>.json with its utterances.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.batching import FILLER, Slot
from asr.collate import BATCH_FACTS, BatchFacts, Collator, UtteranceDataset
from asr.planning import Shape

if TYPE_CHECKING:
    import torch

FOLDER = "bad_batches"


@dataclass(frozen=True)
class Watched:
    """What is kept of a training batch until its loss is read: enough to make it again."""

    loss: torch.Tensor
    facts: BatchFacts
    shape: Shape

    def utterance_ids(self, dataset: UtteranceDataset) -> tuple[str, ...]:
        """Return the ids of its rows that count."""
        names = self.facts.stream.ids if self.facts.stream else {}
        return tuple(names.get(row) or dataset.utterances[row].id for row in self.facts.rows if row != FILLER)

    def again(self, dataset: UtteranceDataset, collate: Collator) -> dict[str, Any]:
        """Return the batch as the loader made it, but for its facts: rows depend on nothing but their slots."""
        facts = self.facts
        slots = [Slot(row, self.shape, facts.epoch, facts.rows_per_rank, facts.labels_per_rank) for row in facts.rows]
        return {name: value for name, value in collate([dataset[slot] for slot in slots]).items() if name != BATCH_FACTS}


def num_kept(folder: Path) -> int:
    """Return how many batches lie in a folder."""
    return len(list(folder.glob("*.json")))


def save(watched: Watched, path: Path, dataset: UtteranceDataset, collate: Collator, numbers: Mapping[str, Any]) -> None:
    """Write a batch to `path`, and beside it its utterances and `numbers`; raise what reading audio and writing files raise."""
    from safetensors.torch import save_file

    batch = watched.again(dataset, collate)
    inputs = batch[collate.input_name]
    peaks = [float(row.abs().max()) if row.numel() else 0.0 for row in inputs]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, str(aside))
    aside.replace(path)
    said = {
        **{name: _in_json(value) for name, value in numbers.items()},
        "epoch": watched.facts.epoch,
        "shape": watched.shape._asdict(),
        "num_fillers": sum(row == FILLER for row in watched.facts.rows),
        "utterances": _utterances(watched.facts, dataset, peaks),
    }
    text = path.with_suffix(".json")
    aside = text.with_name(f".{text.name}.{os.getpid()}")
    aside.write_text(json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8", errors="surrogateescape")
    aside.replace(text)


def _utterances(facts: BatchFacts, dataset: UtteranceDataset, peaks: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "id": dataset.utterances[row].id,
            "row": place,
            "audio": str(dataset.utterances[row].audio),
            "seconds": facts.seconds[place],
            "num_labels": facts.label_lengths[place],
            "transcript": dataset.utterances[row].text,
            "largest_input": _in_json(peaks[place]),
        }
        for place, row in enumerate(facts.rows)
        if row != FILLER
    ]


def _in_json(value: Any) -> Any:
    """Return a number that JSON has no word for as one: "nan", "inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
