"""The shapes of a stream's batches: planned from a sample, or taken from an earlier run, and written down.

In: a batching, the sizes of a sample. Out: shapes, in a file of the run that later runs can take them from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.batching import Batching
from asr.errors import DataError
from asr.files import written
from asr.planning import Shape, Sizes


@dataclass(frozen=True)
class StreamPlan:
    """Shapes, and rows of a batch where there are none: the longest row decides then.

    `padding_efficiency` is the share of the sample's padded input that is audio.
    """

    shapes: tuple[Shape, ...]
    rows: int
    padding_efficiency: float | None = None

    def bin_of(self, length: int, num_labels: int) -> int | None:
        """Return the number of the tightest shape that holds a row, 0 where the longest row decides; None where none holds it."""
        if not self.shapes:
            return 0
        fit = [i for i, shape in enumerate(self.shapes) if length <= shape.length and num_labels <= shape.labels]
        return min(fit, key=lambda i: (self.shapes[i].length, self.shapes[i].labels), default=None)

    def shape(self, number: int) -> Shape | None:
        """Return the shape of a bin; None where the longest row decides."""
        return self.shapes[number] if self.shapes else None

    def rows_of(self, number: int) -> int:
        return self.shapes[number].rows if self.shapes else self.rows

    @property
    def num_bins(self) -> int:
        return max(1, len(self.shapes))

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write the plan, and beside it what it is `about`."""
        content = {
            **about,
            "padding_efficiency": self.padding_efficiency,
            "rows": self.rows,
            "shapes": [list(shape) for shape in self.shapes],
        }
        with written(path) as aside:
            aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> StreamPlan:
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(Shape(*shape) for shape in content["shapes"]), content["rows"], content["padding_efficiency"])


def planned(
    batching: Batching,
    sizes: Sizes,
    batch_size: int,
    *,
    longest_seconds: float | None,
    most_labels: int | None,
    num_readers: int,
    num_processes: int,
    is_whole: bool,
) -> StreamPlan:
    """Return the plan for a stream of which `sizes` are a sample, or all of it (`is_whole`).

    Raises DataError where all of it is less than a batch. In a small corpus batches have no more rows of a shape than come by in an
    epoch: a batch would wait for the next one, and hold the same utterance twice.
    """
    if is_whole and len(sizes.lengths) < batch_size * num_processes:
        raise DataError(
            f"the training split's {len(sizes.lengths)} utterances make no batch of {batch_size}"
            f"{f' for each of {num_processes} processes' if num_processes > 1 else ''}: lower trainer.args.per_device_train_batch_size."
        )
    shapes = batching.shapes_of_stream(sizes, batch_size, longest_seconds=longest_seconds, most_labels=most_labels)
    plan = StreamPlan(tuple(shapes), batch_size)
    rows = list(zip(sizes.lengths.tolist(), sizes.labels.tolist(), strict=True))
    counts = Counter(plan.bin_of(length, labels) for length, labels in rows)
    if is_whole:
        come_by = [max(1, counts[i] // num_readers) for i in range(len(shapes))]
        plan = StreamPlan(tuple(s._replace(rows=min(s.rows, most)) for s, most in zip(shapes, come_by, strict=True)), batch_size)
    padded = sum(count * plan.shapes[i].length for i, count in counts.items() if i is not None) if shapes else 0
    real = sum(length for length, labels in rows if plan.bin_of(length, labels) is not None)
    return StreamPlan(plan.shapes, batch_size, round(real / padded, 4) if padded else None)
