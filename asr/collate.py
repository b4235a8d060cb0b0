"""Rows to tensors: audio decoded and turned into the model's inputs, in the loader's workers.

In: a manifest, a feature extractor, label ids, and slots from a batch sampler. Out: batches of a planned shape, or
padded to their longest row. A row that can't be decoded becomes a filler of the same shape that counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from asr import audio, features
from asr.batching import FILLER, Slot
from asr.errors import DataError
from asr.features import InputLength
from asr.frames import FrameCount
from asr.labels import Labels
from asr.planning import Shape, Sizes
from asr.sources import Utterance
from asr.spec_augment import SpecAugment

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from asr.augment import Augmentation

BATCH_FACTS = "facts"
"""The batch's key that the trainer takes out before the model sees it."""


class Streamed(NamedTuple):
    """Of a batch of a stream: which of its rank's readers made it, that reader's state after it (JSON), and ids by row number."""

    reader: int
    state: Mapping[str, Any]
    ids: Mapping[int, str]


@dataclass(frozen=True)
class BatchFacts:
    """What the host knows of a batch, so that nobody has to ask the device (a sync) for it.

    `rows`: row numbers in the manifest, FILLER for what counts for nothing. `lengths`: real input frames (or samples)
    of each row, 0 for a filler. `label_lengths`: labels of each, likewise. `seconds`: audio of each. `bad`: row number and
    problem of rows that couldn't be decoded. `rows_per_rank`, `labels_per_rank` and `epoch`: as in asr.batching.Slot. `stream`: where it
    is a stream's.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    label_lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    bad: tuple[tuple[int, str], ...] = ()
    rows_per_rank: float | None = None
    epoch: int = 0
    labels_per_rank: float | None = None
    stream: Streamed | None = None

    @property
    def real(self) -> tuple[bool, ...]:
        """Which rows count: those that are no fillers."""
        return tuple(row != FILLER for row in self.rows)


@dataclass(frozen=True)
class Row:
    """One utterance ready to be padded: `inputs` is float32 [frames, features] or [samples], None for a filler.

    `length` is what its inputs were to be: a row that couldn't be decoded still takes its place. `problem` says why.
    """

    number: int
    inputs: NDArray[np.float32] | None
    labels: Sequence[int] | NDArray[np.int32]
    seconds: float
    length: int = 0
    shape: Shape | None = None
    epoch: int = 0
    rows_per_rank: float | None = None
    labels_per_rank: float | None = None
    problem: str = ""


class Decoding:
    """Waveforms to rows: augmented and turned into features, deterministically.

    `on_bad`: "drop" turns a row that can't be decoded into a filler with its problem, "fail" raises its DataError.
    `max_bad_fraction`: most of the rows that whoever trains on them may find to be such. `label_share`: as in asr.planning.Sizes.
    """

    def __init__(
        self,
        feature_extractor: Any,
        *,
        on_bad: str = "fail",
        max_bad_fraction: float = 1.0,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        label_share: float = 0.0,
    ) -> None:
        self.feature_extractor = feature_extractor
        self.on_bad = on_bad
        self.max_bad_fraction = max_bad_fraction
        self.augmentation = augmentation
        self.seed = seed
        self.label_share = label_share
        self.input_length = InputLength.of(feature_extractor.to_dict())

    @property
    def longest_stretch(self) -> float:
        """What a duration may be multiplied by at most: with speed perturbation, utterances are as long as at the slowest."""
        return self.augmentation.longest_stretch if self.augmentation else 1.0

    def sizes_of(self, seconds: Iterable[float], labels: Labels) -> Sizes:
        """Return what batches of rows of so many seconds are planned from."""
        import numpy as np

        stretched = [s * self.longest_stretch for s in seconds]
        lengths = np.array([self.input_length(s) for s in stretched], np.int64)
        window = self.input_length.window_frames is not None
        audio = np.array([self.input_length.audio_frames(s) for s in stretched], np.int64) if window else None
        return Sizes(lengths, labels.lengths, self.input_length, self.input_length.unit, self.label_share, audio)

    def decoded(self, row: Row, utterance_id: str, read: Callable[[], NDArray[np.float32]]) -> Row:
        """Return the row with its inputs; one that can't be `read` with its problem, or raise its DataError."""
        try:
            waveform = read()
        except DataError as error:
            if self.on_bad == "fail":
                raise
            return replace(row, labels=(), seconds=0.0, problem=str(error))
        rate = self.feature_extractor.sampling_rate
        if self.augmentation:
            waveform = self.augmentation.apply(waveform, rate, seed=self.seed, epoch=row.epoch, utterance_id=utterance_id)
        return replace(row, inputs=features.extract(self.feature_extractor, waveform))


class UtteranceDataset(Decoding):
    """A map-style torch dataset over slots: decodes and extracts features when a row is asked for."""

    def __init__(self, utterances: Sequence[Utterance], labels: Labels, feature_extractor: Any, **options: Any) -> None:
        super().__init__(feature_extractor, **options)
        self.utterances = utterances
        self.labels = labels

    def __len__(self) -> int:
        return len(self.utterances)

    def sizes(self) -> Sizes:
        """Return what batches are planned from."""
        return self.sizes_of((u.seconds or 0.0 for u in self.utterances), self.labels)

    def __getitem__(self, slot: Slot | int) -> Row:
        """Return the row of a slot; a plain number is a row outside any plan."""
        number, shape, epoch, rows_per_rank, labels_per_rank = slot if isinstance(slot, tuple) else Slot(slot, None, 0)
        if number == FILLER:
            return Row(FILLER, None, (), 0.0, 0, shape, epoch, rows_per_rank, labels_per_rank)
        utterance = self.utterances[number]
        seconds = utterance.seconds or 0.0
        row = Row(number, None, self.labels[number], seconds, self.input_length(seconds), shape, epoch, rows_per_rank, labels_per_rank)
        return self.decoded(row, utterance.id, lambda: self._read(utterance))

    def _read(self, utterance: Utterance) -> NDArray[np.float32]:
        return audio.read(
            utterance.audio,
            self.feature_extractor.sampling_rate,
            column=utterance.column,
            row=utterance.row,
            start_seconds=utterance.start_seconds,
            seconds=utterance.seconds,
        )


@dataclass(frozen=True)
class DecoderStart:
    """What a decoder is given to begin with, and instead of labels that are none."""

    start_token_id: int
    pad_token_id: int


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to their planned shape: inputs with the extractor's padding value, labels with -100.

    Gives float32 inputs [batch, frames, features], [batch, samples] or, for Whisper, [batch, mel bins, frames] under the
    extractor's name, int32 `attention_mask` [batch, frames] where the model takes one, int64 `labels` [batch, labels], for
    a decoder int64 `decoder_input_ids` [batch, labels], and `facts`; with `spec_augment` also its masks, bool, but for Whisper,
    whose inputs are masked here. A filler's inputs are the padding value, all of it attended to (attention over nothing is
    NaN), without labels.
    """

    input_name: str
    padding_value: float
    with_attention_mask: bool
    num_features: int | None = None
    """Width of a frame; None for waveforms."""
    spec_augment: SpecAugment | None = None
    mask_frames: FrameCount | None = None
    """Frames that `spec_augment` masks: those before any adapter."""
    window: InputLength | None = None
    """Whisper's: its inputs are windows of one length, features first."""
    decoder: DecoderStart | None = None

    @classmethod
    def for_extractor(cls, feature_extractor: Any) -> Collator:
        name = feature_extractor.model_input_names[0]
        length = InputLength.of(feature_extractor.to_dict())
        if length.window_frames is not None:
            return cls(name, float(feature_extractor.padding_value), False, feature_extractor.feature_size, window=length)
        width = feature_extractor.num_mel_bins * feature_extractor.stride if name == "input_features" else None
        # group-normed models (wav2vec2-base) were pretrained without a mask; their extractor says so
        return cls(name, float(feature_extractor.padding_value), bool(feature_extractor.return_attention_mask), width)

    def with_masks_for(self, model: PreTrainedModel, seed: int) -> Collator:
        """Return the same collator with the masks that the config of the model, or of its encoder, asks for, if any."""
        config = getattr(model.config, "encoder", model.config)
        frames = FrameCount.of(config.to_dict(), with_adapter=False)
        return replace(self, spec_augment=SpecAugment.for_model(model, seed), mask_frames=frames)

    def for_decoder(self, start: DecoderStart) -> Collator:
        """Return the same collator that gives a decoder its inputs: the labels, one later."""
        return replace(self, decoder=start)

    def padded_length(self, inputs: Any) -> int:
        """Return the padded length of a batch's inputs: frames or samples."""
        return int(inputs.shape[2 if self.window else 1])

    def for_evaluation(self) -> Collator:
        """Return the same collator without masks of SpecAugment."""
        return replace(self, spec_augment=None)

    def example(self, feature_extractor: Any) -> dict[str, Any]:
        """Return what a model takes for one second of silence: inputs, and the mask and SpecAugment's masks as in every batch."""
        import numpy as np

        silence = features.extract(feature_extractor, np.zeros(feature_extractor.sampling_rate, np.float32))
        batch = self([Row(0, silence, (), 1.0)])
        return {name: value for name, value in batch.items() if name not in (BATCH_FACTS, "labels")}

    def __call__(self, rows: Sequence[Row]) -> Mapping[str, Any]:
        import numpy as np
        import torch

        shape = rows[0].shape
        length = shape.length if shape else max(max(len(r.inputs) if r.inputs is not None else r.length for r in rows), 1)
        width = shape.labels if shape else max(max(len(r.labels) for r in rows), 1)
        features = () if self.num_features is None else (self.num_features,)
        inputs = np.empty((len(rows), length, *features), np.float32)
        labels = np.full((len(rows), width), -100, np.int64)
        lengths = []
        for i, row in enumerate(rows):
            real = 0 if row.inputs is None else min(len(row.inputs), length)  # resampling may round a sample up
            if row.inputs is not None:
                inputs[i, :real] = row.inputs[:real]
            inputs[i, real:] = self.padding_value
            labels[i, : len(row.labels)] = row.labels
            lengths.append(real if self.window is None or row.inputs is None else self.window.audio_frames(row.seconds))
        facts = _facts(rows, lengths)
        if self.window:
            inputs = self._masked(inputs, facts).transpose(0, 2, 1).copy()
        batch = {self.input_name: torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
        if self.with_attention_mask:
            batch["attention_mask"] = _attention_mask(lengths, length)
        if self.decoder:
            batch["decoder_input_ids"] = torch.from_numpy(self._decoder_inputs(labels, self.decoder))
        if self.spec_augment and self.mask_frames and not self.window:
            frames = self.mask_frames(lengths).tolist()
            masks = self.spec_augment.draw(frames, int(self.mask_frames(length)), epoch=facts.epoch, rows=facts.rows)
            names = ("mask_time_indices", "mask_feature_indices")
            batch |= {name: torch.from_numpy(mask) for name, mask in zip(names, masks, strict=True) if mask is not None}
        return Batch(**batch, **{BATCH_FACTS: facts})

    def _masked(self, inputs: NDArray[np.float32], facts: BatchFacts) -> NDArray[np.float32]:
        """Return inputs [batch, frames, features] with SpecAugment's spans of them set to 0, which Whisper's forward would draw itself."""
        if self.spec_augment is None:
            return inputs
        times, features = self.spec_augment.draw(facts.lengths, inputs.shape[1], epoch=facts.epoch, rows=facts.rows)
        if times is not None:
            inputs[times] = 0
        if features is not None:
            inputs.transpose(0, 2, 1)[features] = 0
        return inputs

    @staticmethod
    def _decoder_inputs(labels: NDArray[np.int64], decoder: DecoderStart) -> NDArray[np.int64]:
        """Return the start and then all labels but the last, padding where there are none."""
        import numpy as np

        shifted = np.full_like(labels, decoder.start_token_id)
        shifted[:, 1:] = np.where(labels[:, :-1] == -100, decoder.pad_token_id, labels[:, :-1])
        return shifted


class Batch(dict[str, Any]):
    """What a model takes, and BATCH_FACTS. A worker hands it over without its attention mask, made again on arrival.

    The mask is as many bytes as the audio, and each page of shared memory costs a fault: a third of a loader's time.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        mask = self.get("attention_mask")
        handed = {key: value for key, value in self.items() if key != "attention_mask"}
        return _arrived, (handed, None if mask is None else mask.shape[1])


def _arrived(handed: dict[str, Any], width: int | None) -> Batch:
    mask = {} if width is None else {"attention_mask": _attention_mask(handed[BATCH_FACTS].lengths, width)}
    return Batch(**handed, **mask)


def _attention_mask(lengths: Sequence[int], width: int) -> torch.Tensor:
    """Return what is attended to, int32 [batch, width] as feature extractors give it: a row's own length, and all of a filler."""
    import numpy as np
    import torch

    mask = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(mask, lengths, strict=True):
        row[: length or width] = 1
    return torch.from_numpy(mask)


def _facts(rows: Sequence[Row], lengths: Sequence[int]) -> BatchFacts:
    return BatchFacts(
        rows=tuple(FILLER if r.problem else r.number for r in rows),
        lengths=tuple(lengths),
        label_lengths=tuple(len(r.labels) for r in rows),
        seconds=tuple(r.seconds for r in rows),
        bad=tuple((r.number, r.problem) for r in rows if r.problem),
        rows_per_rank=rows[0].rows_per_rank,
        epoch=rows[0].epoch,
        labels_per_rank=rows[0].labels_per_rank,
    )
