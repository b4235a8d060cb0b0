"""Common Voice as Mozilla releases it: a folder a language, with a TSV file a split and the clips beside them.

In: the extracted folder. Out: rows in the order of the TSV files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asr.errors import ConfigError, DataError, did_you_mean
from asr.sources import Source, Utterance, check_column, folders_in, inside, lines_of

SPEAKER_COLUMN = "client_id"


@dataclass(kw_only=True)
class CommonVoice(Source):
    """<language>/{train,dev,test,validated,other,invalidated}.tsv and <language>/clips/; `root` holds languages or is one."""

    language: str | None = None
    """Folder of the language below `root`, such as tr; null when `root` is that folder itself."""
    train_split: str = "train"
    """A TSV file without its suffix; "train+dev" joins two."""
    eval_split: str = "test"
    """A TSV file without its suffix, or several joined by +."""
    audio_column: str = "path"
    """Column that names the clip."""
    text_column: str = "sentence"
    """Column of the transcript."""

    @property
    def name(self) -> str:
        return f"common_voice_{self.language}" if self.language else "common_voice"

    def check_reachable(self) -> None:
        for split in (self.train_split, self.eval_split):
            self._paths(split)

    def utterances(self, split: str) -> Iterator[Utterance]:
        for path in self._paths(split):
            yield from self._table(path.parent, path)

    def _paths(self, split: str) -> list[Path]:
        folder = self._language_folder()
        return [folder / f"{name}.tsv" for name in self.split_names(split, _tables(folder))]

    def _language_folder(self) -> Path:
        root = self.corpus_folder()
        languages = [name for name in folders_in(root) if _tables(root / name)]
        if self.language in languages:
            return root / str(self.language)
        if _tables(root) and self.language in (None, root.resolve().name):
            return root
        wrong = f"there is no language {self.language!r} in {root}" if self.language else "is missing"
        listed = f"it holds {', '.join(languages)}" if languages else f"no folder in {root} holds TSV files"
        raise ConfigError(f"{wrong}; {listed}.{did_you_mean(self.language or '', languages)}", key="language")

    def _table(self, folder: Path, path: Path) -> Iterator[Utterance]:
        """Yield the rows of a TSV file, whose fields are never quoted: a quotation mark is part of the sentence."""
        columns: list[str] = []
        for where, line in lines_of(path):
            fields = line.split("\t")
            if not columns:
                columns = fields
                for key in ("audio_column", "text_column"):
                    check_column(getattr(self, key), columns, key=key, where=path)
                continue
            if len(fields) != len(columns):
                raise DataError(f"{where} has {len(fields)} fields where the header has {len(columns)}; mend or remove the line.")
            row = dict(zip(columns, fields, strict=True))
            clip = row[self.audio_column]
            if not Path(clip).suffix:  # the first releases leave it out
                clip += ".mp3"
            yield Utterance(
                Path(clip).stem, inside(folder / "clips", clip, where=where), row[self.text_column], row.get(SPEAKER_COLUMN, "")
            )


def _tables(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.tsv"))
