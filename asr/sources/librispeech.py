"""LibriSpeech as https://www.openslr.org/12 packs it: read English, 16 kHz FLAC, a transcript file a chapter.

In: the extracted folder. Out: rows in the order of speakers, chapters and their transcripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.errors import DataError
from asr.sources import Source, Utterance, folders_in, inside, lines_of


@dataclass(kw_only=True)
class LibriSpeech(Source):
    """LibriSpeech/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac; `root` is LibriSpeech or the folder that holds it."""

    train_split: str = "train-clean-100"
    """A folder of the corpus; "train-clean-100+train-clean-360" joins two."""
    eval_split: str = "dev-clean"
    """A folder of the corpus, or several joined by +."""

    @property
    def name(self) -> str:
        return "librispeech"

    def check_reachable(self) -> None:
        for split in (self.train_split, self.eval_split):
            self._folders(split)

    def utterances(self, split: str) -> Iterator[Utterance]:
        for folder in self._folders(split):
            transcripts = sorted(folder.glob("*/*/*.trans.txt"))
            if not transcripts:
                raise DataError(f"{folder} holds no <speaker>/<chapter>/*.trans.txt; extract the archive again.")
            for transcript in transcripts:
                yield from _chapter(transcript)

    def _folders(self, split: str) -> list[Path]:
        corpus = self.corpus_folder()
        if (corpus / "LibriSpeech").is_dir():
            corpus /= "LibriSpeech"
        return [corpus / name for name in self.split_names(split, folders_in(corpus))]


def _chapter(transcript: Path) -> Iterator[Utterance]:
    """Yield the utterances of a chapter. A line without words, or audio without a line, has an empty transcript: left out and listed."""
    folder = transcript.parent
    named = set()
    for where, line in lines_of(transcript):
        name, _, text = line.partition(" ")
        named.add(name)
        yield Utterance(name, inside(folder, f"{name}.flac", where=where), text.strip(), folder.parent.name)
    for path in sorted(folder.glob("*.flac")):
        if path.stem not in named:
            yield Utterance(path.stem, path, "", folder.parent.name)
