"""The training split of a streamed run, as the trainer has it: readers of it, rows for its collator, single utterances again.

In: shards, rules, and a sample of the split. Out: consumers (asr.streaming.consumer), and rows like those of any other dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import audio
from asr.batching import FILLER, Slot
from asr.collate import Decoding, Row
from asr.errors import DataError
from asr.labels import Labels
from asr.planning import Shape, Sizes
from asr.sources import Utterance
from asr.streaming.consumer import Consumer
from asr.streaming.dealing import Dealing
from asr.streaming.parquet import ParquetFormat
from asr.streaming.plans import StreamPlan
from asr.streaming.rules import Item, Rules
from asr.streaming.shards import Ref, Sample, Shards
from asr.streaming.tar import TarFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS: Mapping[str, type] = {kind.__name__: kind for kind in (ParquetFormat, TarFormat)}
"""What a run's directory calls the formats of shards."""
ROW_BITS = 32
"""A row's number is that of its unit, and beneath so many bits its row there: what masks and messages know it by."""


@dataclass(frozen=True)
class Taste:
    """What a sample of the split says of all of it: seconds and label ids."""

    seconds: Sequence[float]
    labels: Labels


class StreamedDataset(Decoding):
    """What is known of a split that is read as it is trained on. Its length is the corpus', or about it."""

    def __init__(
        self,
        shards: Shards,
        rules: Rules,
        taste: Taste,
        plan: StreamPlan,
        feature_extractor: Any,
        *,
        shuffle_buffer_size: int,
        **options: Any,
    ) -> None:
        super().__init__(feature_extractor, **options)
        self.shards = shards
        self.rules = rules
        self.taste = taste
        self.plan = plan
        self.shuffle_buffer_size = shuffle_buffer_size

    def __len__(self) -> int:
        return max(self.shards.num_utterances or 0, len(self.taste.labels))

    @property
    def labels(self) -> Labels:
        """The labels of the sample."""
        return self.taste.labels

    def sizes(self) -> Sizes:
        """Return the sizes of the sample."""
        return self.sizes_of(self.taste.seconds, self.taste.labels)

    @property
    def utterances(self) -> Mapping[int, Utterance]:
        """Utterances by row number, each read again."""
        return _Again(self)

    def consumer(self, number: int, num_consumers: int, *, seed: int, num_here: int) -> Consumer:
        """Return one of `num_consumers` readers, `num_here` of which share this rank's buffer."""
        dealing = Dealing(len(self.shards.units), num_consumers, seed)
        length_of = _Stretched(self.input_length, self.longest_stretch)
        return Consumer(number, self.shards, dealing, self.rules, self.plan, length_of, max(1, self.shuffle_buffer_size // num_here))

    def row(self, item: Item, shape: Shape | None) -> Row:
        """Return an utterance that has come by as a row of a batch."""
        length = self.input_length(item.seconds)
        row = Row(number_of(item.ref), None, item.labels, item.seconds, length, shape, item.epoch)
        return self.decoded(row, item.id, lambda: self._read(item))

    def _read(self, item: Item) -> NDArray[np.float32]:
        shard = Path(self.shards.units[item.ref.unit].shard)
        rate = self.feature_extractor.sampling_rate
        return audio.read(shard, rate, row=item.ref.row, seconds=item.seconds, content=item.audio)

    def __getitem__(self, slot: Slot) -> Row:
        """Return the row of a batch that has been, from its shard: as it was made then."""
        if slot.row == FILLER:
            return Row(FILLER, None, (), 0.0, 0, slot.shape, slot.epoch, slot.rows_per_rank)
        sample = self.sample(slot.row)
        item = self.rules(sample, self.shards.units[sample.ref.unit].shard, slot.epoch)
        assert isinstance(item, Item), f"row {slot.row} was in a batch"
        return self.row(item, slot.shape)

    def sample(self, number: int) -> Sample:
        """Return an utterance by its row number, which needs its shard read up to it."""
        unit, row = number >> ROW_BITS, number & ((1 << ROW_BITS) - 1)
        for sample in self.shards.samples(Ref(unit, 0)):
            if sample.ref.row == row:
                return sample
        raise DataError(f"{self.shards.units[unit].shard} has no row {row} any more.")


def number_of(ref: Ref) -> int:
    """Return the number by which a row is known in a batch."""
    return (ref.unit << ROW_BITS) | ref.row


@dataclass(frozen=True)
class _Stretched:
    """The input length of seconds at the slowest speed."""

    input_length: Any
    stretch: float

    def __call__(self, seconds: float) -> int:
        return self.input_length(seconds * self.stretch)  # type: ignore[no-any-return]


class _Again(Mapping[int, Utterance]):
    def __init__(self, dataset: StreamedDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, number: int) -> Utterance:
        found = self._dataset.sample(number)
        shard = Path(self._dataset.shards.units[found.ref.unit].shard)
        return Utterance(found.id, shard, found.text, found.speaker, row=found.ref.row)

    def __iter__(self) -> Any:
        raise TypeError("a stream has no list of its utterances")

    def __len__(self) -> int:
        return len(self._dataset)
