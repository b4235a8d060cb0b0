"""Transcription: recordings of any length, cut into chunks, heard batch by batch, joined and written.

In: a model, recordings, and how they are cut. Out: transcripts as they are done; recordings that can't be read with the reason. Memory
doesn't grow with the length of a recording, but for its transcript and a number a frame.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import audio, chunks, ctc_words, subtitles
from asr import recordings as audio_named
from asr.chunks import Chunk, Frames, Texts, Window, text_of
from asr.config import check_ranges, node_of, under
from asr.decoding import BeamDecoder, GreedyDecoder, Search, Stretches
from asr.errors import ConfigError, DataError, did_you_mean, listed
from asr.files import written
from asr.sources import Utterance
from asr.subtitles import Said, Transcript

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asr.recogniser import Heard, Recogniser

log = logging.getLogger(__name__)

BATCH_SECONDS = 120.0
ROWS_ON_HPU = 8
"""Of every batch there: its shapes are few and known."""


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut: seconds of a chunk, of what it shares with the next, and of a batch with its padding."""

    chunk_seconds: float
    overlap_seconds: float
    batch_seconds: float = BATCH_SECONDS

    @classmethod
    def of(cls, usual_seconds: float, chunk: float | None, overlap: float | None, batch: float, *, most: float | None) -> Cutting:
        """Return what was asked for, with the usual values in the place of None; raise ConfigError for what can't be.

        `most` is the longest that the model hears.
        """
        chunk = usual_seconds if chunk is None else chunk
        overlap = chunk / 3 if overlap is None else overlap
        if not 0.5 <= chunk <= 3600:
            raise ConfigError(f"{chunk:g} is out of range; it must be at least 0.5 and at most 3600.", key="--chunk-seconds")
        if most is not None and chunk > most:
            raise ConfigError(f"{chunk:g} is more than the {most:g} s that this model hears.", key="--chunk-seconds")
        if not 0 <= overlap <= chunk / 2:
            raise ConfigError(f"{overlap:g} is out of range; it must be at most half a chunk, {chunk / 2:g}.", key="--overlap-seconds")
        if not 0 < batch < 1e6:
            raise ConfigError(f"{batch:g} is out of range; it must be above 0.", key="--batch-seconds")
        return cls(chunk, overlap, batch)


@dataclass
class _Open:
    """A recording that is being heard: what has been heard, and how many chunks there are, once it is known."""

    frames: Frames = field(default_factory=Frames)
    stretches: Stretches | None = None
    texts: Texts = field(default_factory=Texts)
    samples: int = 0
    num_heard: int = 0
    num_chunks: int | None = None

    @property
    def is_done(self) -> bool:
        return self.num_heard == self.num_chunks


class Transcriber:
    """Hears recordings, several at a time where they are short. `problems` are those that can't be read, by number."""

    def __init__(
        self, recogniser: Recogniser, cutting: Cutting, *, search: Search | None = None, progress: Callable[[float], object] | None = None
    ) -> None:
        self.search = search
        self.recogniser, self.progress = recogniser, progress or (lambda seconds: None)
        self.rate_hz = recogniser.rate_hz
        self.window = Window.of(cutting.chunk_seconds, cutting.overlap_seconds, self.rate_hz, recogniser.frame_samples)
        self.most_samples = max(round(cutting.batch_seconds * self.rate_hz), 1)
        self.problems: dict[int, str] = {}
        self.seconds_heard = 0.0
        self._open: dict[int, _Open] = {}

    def transcripts(self, recordings: Sequence[Utterance]) -> Iterator[tuple[int, Transcript]]:
        """Yield (number, transcript) of every recording as it is done, the longest first; those without seconds are left out."""
        order = sorted((n for n, r in enumerate(recordings) if r.seconds is not None), key=lambda n: -(recordings[n].seconds or 0.0))
        rows = ROWS_ON_HPU if self.recogniser.device == "hpu" else None
        for batch in chunks.batched(self._chunks(recordings, order), self.most_samples, rows=rows):
            shape = self.recogniser.shape_of(max(len(chunk.samples) for chunk in batch), self.window.size, rows or len(batch))
            heard = self.recogniser.hear([chunk.samples for chunk in batch], shape=shape, log_probs=self.search is not None)
            for chunk, said in zip(batch, heard, strict=True):
                self._take_in(chunk, said)
            yield from self._done(recordings)
        yield from self._done(recordings)

    def _chunks(self, recordings: Sequence[Utterance], order: Sequence[int]) -> Iterator[Chunk]:
        """Yield the chunks of recordings, one after another; one that can't be read to its end is noted and left out."""
        for number in order:
            state = self._open[number] = _Open(stretches=Stretches(self.search, self.recogniser.blank) if self.search else None)
            cut = 0
            try:
                for chunk in chunks.cut(number, self._blocks(recordings[number]), self.window):
                    state.samples, cut = chunk.start + len(chunk.samples), cut + 1
                    yield chunk
            except DataError as error:
                self.problems[number] = str(error)
                del self._open[number]
            else:
                state.num_chunks = cut

    def _blocks(self, recording: Utterance) -> Iterator[NDArray[np.float32]]:
        part = {"start_seconds": recording.start_seconds, "seconds": recording.seconds} if recording.start_seconds is not None else {}
        return audio.blocks(recording.audio, self.rate_hz, column=recording.column, row=recording.row, **part)

    def _take_in(self, chunk: Chunk, heard: Heard) -> None:
        seconds = (len(chunk.samples) - (self.window.overlap if chunk.number else 0)) / self.rate_hz
        self.seconds_heard += seconds
        self.progress(seconds)
        state = self._open.get(chunk.recording)
        if state is None:  # further on it turned out unreadable
            return
        state.num_heard += 1
        if heard.tokens is None:
            state.texts.add(chunk.number, heard.text, chunk.start, len(chunk.samples))
        else:
            state.frames.add(chunk.number, chunk.start // self.recogniser.frame_samples, heard.tokens, heard.log_probs)
            if state.stretches:
                state.stretches.add(state.frames.settled())

    def _done(self, recordings: Sequence[Utterance]) -> Iterator[tuple[int, Transcript]]:
        for number in [number for number, state in self._open.items() if state.is_done]:
            state = self._open.pop(number)
            written_down = self._of_texts if self.recogniser.found.generates else self._of_frames
            yield number, written_down(recordings[number].id, state)

    def _of_texts(self, name: str, state: _Open) -> Transcript:
        parts = state.texts.end()
        said = [(text.strip(), start / self.rate_hz, end / self.rate_hz) for text, start, end in parts]
        text = text_of(part for part, _, _ in parts)
        return Transcript(name, state.samples / self.rate_hz, text, parts=[Said(*part) for part in said if part[0]])

    def _of_frames(self, name: str, state: _Open) -> Transcript:
        recogniser, seconds = self.recogniser, state.samples / self.rate_hz
        tokens = state.frames.end()
        if state.stretches:
            state.stretches.add(state.frames.settled())
            tokens = state.stretches.end()
        runs = ctc_words.runs(tokens, recogniser.blank)
        found = ctc_words.words(runs, recogniser.tokenizer)
        at = recogniser.frame_samples / self.rate_hz
        said = [Said(word.text, min(word.begin * at, seconds), min(word.end * at, seconds)) for word in found]
        text = ctc_words.written([token for token, _, _ in runs], recogniser.tokenizer)
        return Transcript(name, seconds, text, said, space=ctc_words.space(recogniser.tokenizer))


def places(recordings: Sequence[Utterance], folder: Path, formats: Sequence[str], *, overwrite: bool) -> list[Path]:
    """Return where the transcripts of recordings go below a folder, without the suffix; raise ConfigError for a file that is there.

    A transcript has the name of its recording; recordings of one name have more of their paths in theirs.
    """
    names = [_name(recording) for recording in recordings]
    stems = [Path(name).stem for name in names]
    short = [stem if stems.count(stem) == 1 else name.strip("/").replace("/", "_") for stem, name in zip(stems, names, strict=True)]
    found = [folder / (name if short.count(name) == 1 else f"{name}-{n}") for n, name in enumerate(short)]
    there = [str(file) for place in found for form in formats if (file := with_suffix(place, form)).exists()]
    if there and not overwrite:
        raise ConfigError(f"{listed(there, 3)} is there already; name another folder, or give --overwrite.", key="--into")
    return found


def _name(recording: Utterance) -> str:
    """Return the path, or the manifest's id, without what can't be in a file's name."""
    return "".join(c if c.isprintable() and c not in '\\:*?"<>|' else "_" for c in recording.id).replace("..", "_")


def with_suffix(place: Path, form: str) -> Path:
    return place.with_name(place.name + subtitles.SUFFIX[form])


def save(transcript: Transcript, place: Path, formats: Sequence[str]) -> None:
    """Write a transcript in each format, whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for form in formats:
        with written(with_suffix(place, form)) as aside:
            aside.write_text(subtitles.FORMATS[form](transcript), encoding="utf-8", errors="surrogateescape")


def transcribe(
    model: str,
    named: Sequence[str],
    *,
    formats: Sequence[str] = ("text",),
    into: Path | None = None,
    overwrite: bool = False,
    chunk_seconds: float | None = None,
    overlap_seconds: float | None = None,
    batch_seconds: float = BATCH_SECONDS,
    device: str = "auto",
    language: str | None = None,
    task: str | None = None,
    decoder: GreedyDecoder | BeamDecoder | None = None,
    show: Callable[[str], object] = print,
) -> None:
    """Transcribe recordings: shown in the order they were named in, or written into a folder as they are done.

    Raises ConfigError for what can't be before anything is heard, and, once all others are done, DataError that names the recordings
    that can't be read.
    """
    from asr import recogniser

    recordings = audio_named.find(named)
    check_formats(formats, into, len(recordings))
    found = recogniser.find(model, language=language, task=task)
    cutting = Cutting.of(found.usual_seconds, chunk_seconds, overlap_seconds, batch_seconds, most=found.model.most_seconds())
    decoder = _checked(decoder or found.decoder or GreedyDecoder(), generates=found.generates)
    where = places(recordings, into, formats, overwrite=overwrite) if into else []
    recordings, problems = audio_named.measured(recordings)
    for problem in problems.values():
        log.error("%s", problem)
    if len(problems) < len(recordings):
        loaded = recogniser.Recogniser(found, device)
        search = decoder.search(loaded.tokenizer) if isinstance(decoder, BeamDecoder) else None
        with _bar(sum(r.seconds or 0.0 for r in recordings)) as bar:
            transcriber = Transcriber(loaded, cutting, search=search, progress=bar.update)
            begin, shown = time.perf_counter(), _InOrder(recordings, problems, formats[0], show)
            for number, transcript in transcriber.transcripts(recordings):
                if into:
                    save(transcript, where[number], formats)
                else:
                    shown.add(number, transcript)
        took = time.perf_counter() - begin
        for problem in transcriber.problems.values():
            log.error("%s", problem)
        problems |= transcriber.problems
        shown.end(problems)
        _say_speed(transcriber.seconds_heard, took, len(recordings) - len(problems), into)
    if problems:
        raise DataError(f"{len(problems)} of {len(recordings)} recordings can't be read; the others are transcribed.")


def decoder_of(words: Sequence[str]) -> GreedyDecoder | BeamDecoder | None:
    """Return the decoder that a command line names: `greedy`, or keys of a beam search with their values; None where it names none."""
    import yaml

    if not words:
        return None
    if list(words) == ["greedy"]:
        return GreedyDecoder()
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is neither greedy nor key=value, such as lm=lm.arpa.", key="--decoder")
        values[key] = value if key in ("lm", "lexicon") else yaml.safe_load(value)
    with under("--decoder"):
        made: BeamDecoder = node_of(BeamDecoder, values)
    return made


def _checked(decoder: GreedyDecoder | BeamDecoder, *, generates: bool) -> GreedyDecoder | BeamDecoder:
    if generates and decoder.searches:
        raise ConfigError("is for CTC models; this one generates its text.", key="--decoder")
    check_ranges(decoder)
    decoder.check_reachable()
    return decoder


def check_formats(formats: Sequence[str], into: Path | None, num_recordings: int) -> None:
    """Raise ConfigError for a format that there is none of, and for what can't be shown on a terminal."""
    for form in formats:
        if form not in subtitles.FORMATS:
            known = ", ".join(subtitles.FORMATS)
            raise ConfigError(f"{form!r} is not one of {known}.{did_you_mean(form, subtitles.FORMATS)}", key="--format")
    if into is None and (len(formats) > 1 or (num_recordings > 1 and formats[0] in ("srt", "vtt"))):
        raise ConfigError(f"is missing: {', '.join(formats)} of {num_recordings} recordings are written into files.", key="--into")


class _InOrder:
    """Shows transcripts in the order of the recordings, each as soon as those before it are done."""

    def __init__(self, recordings: Sequence[Utterance], problems: dict[int, str], form: str, show: Callable[[str], object]) -> None:
        self.recordings, self.form, self.show = recordings, form, show
        self._waiting: dict[int, Transcript | None] = dict.fromkeys(problems)
        self._next = 0

    def add(self, number: int, transcript: Transcript | None) -> None:
        self._waiting[number] = transcript
        while self._next in self._waiting:
            ready = self._waiting.pop(self._next)
            self._next += 1
            if ready is not None:
                content = subtitles.FORMATS[self.form](ready).rstrip("\n")
                named = self.form == "text" and len(self.recordings) > 1
                self.show(f"{ready.name}\t{content}" if named else content)

    def end(self, problems: dict[int, str]) -> None:
        """Show what waits for recordings that turned out unreadable."""
        for number in problems:
            if number >= self._next and number not in self._waiting:
                self.add(number, None)


def _bar(total_seconds: float) -> Any:
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    return tqdm(total=round(total_seconds, 3), desc="transcribing", bar_format="{desc}: " + form, disable=None)


def _say_speed(seconds: float, took: float, num_recordings: int, into: Path | None) -> None:
    factor = took / seconds if seconds else 0.0
    where = f" into {into}" if into else ""
    log.info("transcribed %d recordings%s: %.1f s of audio in %.1f s, real-time factor %.4f", num_recordings, where, seconds, took, factor)
