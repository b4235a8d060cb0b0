"""A Trainer whose training split is a stream: its loader, and where its readers stand, in every checkpoint.

In: a Trainer class that resumes (asr.resuming). Out: the same, for datasets with a list of their utterances as before, for a stream
with batches that go on where the last optimizer step left them, whatever workers have read ahead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asr import stops
from asr.agreement import Agreement
from asr.collate import BatchFacts
from asr.resuming import ResumingMixin
from asr.streaming.consumer import together
from asr.streaming.dataset import StreamedDataset

log = logging.getLogger(__name__)

LOADER_OPTIONS = {
    "dataloader_persistent_workers": "persistent_workers",
    "dataloader_prefetch_factor": "prefetch_factor",
    "dataloader_in_order": "in_order",
    "dataloader_multiprocessing_context": "multiprocessing_context",
}
"""Arguments that a DataLoader with workers takes, and its names for them; the last two are new in transformers 5."""


def loader_options(args: Any) -> dict[str, Any]:
    """Return what a DataLoader is made with, for any data."""
    import torch

    workers = args.dataloader_num_workers
    given = {name: value for argument, name in LOADER_OPTIONS.items() if (value := vars(args).get(argument)) is not None}
    return {
        "num_workers": workers,
        "worker_init_fn": stops.listen_in_loader if workers else None,
        "generator": torch.Generator(),  # its own: a loader's start draws a number, and must not move the model's dice
        "pin_memory": args.dataloader_pin_memory and not args.use_cpu,
        **(given if workers else {}),
    }


class Endless:
    """Stands for the batch sampler that a stream hasn't: its one epoch is all the steps that are asked for."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def __len__(self) -> int:
        return self.num_batches


class StreamingMixin(ResumingMixin):
    """Stands before a Trainer class."""

    train_dataset: Any
    data_collator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stream_states: dict[str, Mapping[str, Any]] = {}
        """Of this rank's readers, by number: where each stands after the last of its batches that was trained on."""
        self.stream_taken = 0
        """Batches of the stream that this rank has trained on."""
        self._stream_begins: Mapping[str, Any] | None = None
        self._stream_agreement: Agreement | None = None

    @property
    def streams(self) -> bool:
        return isinstance(self.train_dataset, StreamedDataset)

    def stream_loader(self, seed: int) -> Any:
        """Return the batches of this rank, from where its readers stand on."""
        from torch.utils.data import DataLoader

        from asr.streaming.loading import Position, Readers, StreamLoader, as_it_is

        before = self._carried.get("stream") or {}
        self.stream_taken, self.stream_states = before.get("taken", 0), dict(before.get("states", {}))
        self._stream_begins = before.get("begins")
        args = self.args
        position = Position(self.stream_taken, self.stream_states, self._stream_begins)
        workers = args.dataloader_num_workers
        readers = Readers(
            self.train_dataset,
            self.data_collator,
            seed=seed,
            rank=args.process_index,
            world_size=args.world_size,
            workers=workers,
            position=position,
        )
        if self._stream_agreement is None:
            self._stream_agreement = Agreement(args.world_size, timeout_seconds=args.ddp_timeout)
        self.positioned(Endless(args.max_steps * args.gradient_accumulation_steps * args.world_size))
        _log_stream(self.train_dataset, args.world_size * max(1, workers))
        loader = DataLoader(readers, batch_size=None, collate_fn=as_it_is, **loader_options(args))
        return StreamLoader(loader, self._stream_agreement, args.world_size)

    def noted(self, facts: BatchFacts) -> BatchFacts:
        """Take note that a batch is trained on; return its facts without its reader's state, which whoever keeps facts needn't keep."""
        if facts.stream is None:
            return facts
        self.stream_states[str(facts.stream.reader)] = facts.stream.state
        self.stream_taken += 1
        return replace(facts, stream=facts.stream._replace(state={}))

    def progress(self) -> dict[str, Any]:
        if not self.streams:
            return super().progress()
        stream = {"taken": self.stream_taken, "states": self.stream_states, "begins": self._stream_begins}
        return super().progress() | {"stream": stream}

    def merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """Let every reader begin the next epoch: another number of them is dealt other units."""
        if not self.streams:
            return super().merged(parts)
        states = [state for part in parts for state in part["stream"]["states"].values()]
        states += [part["stream"]["begins"] for part in parts if part["stream"]["begins"] is not None]
        begins = together(states)
        log.warning("the stream is dealt anew: every reader begins epoch %d of it", begins["epoch"])
        return super().merged(parts) | {"stream": {"taken": 0, "states": {}, "begins": begins}}

    def stream_report(self) -> dict[str, Any]:
        """Return how far the stream was read by all ranks, and how often utterances were left out, by reason; every rank calls it."""
        of_ranks = self.agreement.gathered((list(self.stream_states.values()), self._stream_begins))
        states = [state for of_rank, _ in of_ranks for state in of_rank]
        begun = [begins for _, begins in of_ranks[:1] if begins is not None]
        told = together([*states, *begun])["left_out"]
        return {
            "epochs_begun": max((state["epoch"] for state in states), default=-1) + 1,
            "left_out": {reason: count for reason, (count, _) in told.items()},
            "examples": {reason: detail for reason, (_, detail) in told.items()},
        }


def _log_stream(data: StreamedDataset, num_readers: int) -> None:
    units = len(data.shards.units)
    shapes = ", ".join(f"{shape.rows} of {shape.length}" for shape in data.plan.shapes) or f"{data.plan.rows} of any length"
    audio = "" if data.plan.padding_efficiency is None else f", {100 * data.plan.padding_efficiency:.1f} % audio in the sample"
    dealt = "whose rows are dealt over" if units < num_readers else "dealt over"
    log.info(
        "training batches: a stream of %d units %s %d readers, %d shapes%s (rows of length: %s)",
        *(units, dealt, num_readers, len(data.plan.shapes), audio, shapes),
    )
