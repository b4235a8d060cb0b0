"""Datasets of the Hugging Face hub, and local folders in its formats, through the library datasets; Parquet files also as a stream.

In: a hub name or a folder of Parquet, Arrow or save_to_disk files, with an audio and a text column. Out: rows that point at
cells of the memory-mapped Arrow files, where whoever decodes reads the bytes without this library. No audio is read here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from asr import hub
from asr.errors import ConfigError, DataError, did_you_mean, listed
from asr.sources import Utterance, check_column, inside
from asr.sources.arrow_split import ArrowSplit, is_audio, is_text
from asr.sources.sharded import Sharded
from asr.streaming import parquet
from asr.streaming.parquet import ParquetFormat
from asr.streaming.shards import Shards, Unit, why

log = logging.getLogger(__name__)

PART_KEYS = ("path config_name revision audio_column text_column speaker_column id_column train_split eval_split").split()
"""What an entry of `parts` may say."""
SPLITS = ("train_split", "eval_split")
SAVED = ("dataset_dict.json", "state.json")
"""What save_to_disk writes beside its Arrow files, for several splits and for one."""


@dataclass(kw_only=True)
class Hub(Sharded):
    """One dataset, or several joined by `parts`. Splits are expressions: "train+validation", "train[:10%]", "train[100:200]".

    Raises ConfigError for a dataset, configuration, split or column that can't be had. With streaming nothing but Parquet files serves.
    """

    ENDING: ClassVar[str] = ".parquet"

    train_split: str = "train"
    """A split expression."""
    eval_split: str = "test"
    """A split expression."""
    cache_dir: str | None = None
    """Where datasets keeps its Arrow files; null keeps to its own default (HF_DATASETS_CACHE)."""
    audio_column: str = "audio"
    """Column with the audio: encoded bytes, or the path of a file."""
    text_column: str = "text"
    """Column of the transcript."""
    speaker_column: str | None = None
    """Column of the speaker; null takes speaker_id where there is one."""
    id_column: str | None = None
    """Column of the utterance's id; null takes id where there is one that never repeats, else split and row."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Datasets to join, in order: each gives what differs from the keys above. A split that is null leaves a part out of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.parts:
            raise ConfigError("a stream is of one dataset: name it by path or root, or set streaming=false.", key="parts")
        for number, part in enumerate(self.parts):
            for key, value in part.items():
                if key not in PART_KEYS:
                    raise ConfigError(
                        f"there is no such key; a part has {', '.join(PART_KEYS)}.{did_you_mean(str(key), PART_KEYS)}",
                        key=f"parts[{number}].{key}",
                    )
                if not isinstance(value, str) and (value is not None or key in ("path", "audio_column", "text_column")):
                    raise ConfigError(f"{value!r} is not text.", key=f"parts[{number}].{key}")
            if self.train_split == self.eval_split and part.get("train_split", "") != part.get("eval_split", ""):
                raise ConfigError("train_split and eval_split are the same, so a part's can't differ.", key=f"parts[{number}]")

    @property
    def name(self) -> str:
        named = [self.root or self.path, *(part.get("path") for part in self.parts)]
        return "+".join(dict.fromkeys(str(name) for name in named if name)) or "hub"

    def check_reachable(self) -> None:
        if not self.parts:
            self._folder()

    def utterances(self, split: str) -> Iterator[Utterance]:
        if self.streaming:
            yield from super().utterances(split)
            return
        if not self.parts:
            yield from self._rows(split)
            return
        key = next((key for key in SPLITS if getattr(self, key) == split), "")
        for number, given in enumerate(self.parts):
            spec = given.get(key, split)
            if spec is None:
                continue
            part = replace(self, parts=[], **{key: value for key, value in given.items() if value is not None or key not in SPLITS})
            part.root = None if "path" in given else self.root
            try:
                for row in part._rows(spec):
                    yield replace(row, id=f"part{number}-{row.id}")
            except ConfigError as error:
                raise ConfigError(error.problem, key=f"parts[{number}].{error.key}" if error.key in given else error.key) from error

    def _rows(self, spec: str) -> Iterator[Utterance]:
        """Yield the rows of a split expression of this one dataset."""
        tables = self._tables()
        ranges = self._ranges(spec, {name: table.num_rows for name, table in tables.items()})
        ids = self._ids({name: tables[name] for name, _, _ in ranges})
        for name, start, end in ranges:
            yield from self._range(name, tables[name], start, end, ids.get(name))

    def _tables(self) -> dict[str, ArrowSplit]:
        """Return the splits of the dataset, downloaded and converted to Arrow files first where need be."""
        import datasets

        folder, location = self._folder(), self._location()
        with self._explained():
            if folder is not None and any((folder / name).is_file() for name in SAVED):
                loaded = datasets.load_from_disk(location, keep_in_memory=False)
            else:
                loaded = self._loaded(location, of_hub=folder is None)
        if isinstance(loaded, datasets.Dataset):  # saved alone: it may not know its name, or be called train[:10%]
            named = loaded.split is not None and re.fullmatch(r"\w+(\.\w+)*", str(loaded.split))
            loaded = {str(loaded.split) if named else "train": loaded}
        return {
            str(name): ArrowSplit(tuple(Path(file["filename"]).absolute() for file in dataset.cache_files), dataset.num_rows)
            for name, dataset in loaded.items()
        }

    def _loaded(self, location: str, *, of_hub: bool) -> Any:
        """Return what datasets makes of a folder or a name, which it first asks the hub for."""
        import datasets
        from datasets.naming import camelcase_to_snakecase

        def load() -> Any:
            return datasets.load_dataset(location, self.config_name, revision=self.revision, cache_dir=self.cache_dir, keep_in_memory=False)

        if not of_hub:
            return load()
        with hub.cached_datasets_if_silent(location):
            *owner, name = location.split("/")
            kept = Path(self.cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
            arrow_files = kept / "___".join([*owner, camelcase_to_snakecase(name)])
            return hub.patiently(load, [hub.cache_folder(None) / f"datasets--{location.replace('/', '--')}", arrow_files])

    def _ids(self, tables: dict[str, ArrowSplit]) -> dict[str, list[str | None]]:
        """Return the ids of the splits that have some, unique across them where they are within each."""
        ids = {}
        for name, table in tables.items():
            column = self._optional_column("id_column", "id", name, table) if table.files else None
            if column is not None:
                values = [None if value is None else str(value) for value in table.values(column)]
                if self.id_column is not None or len(set(values)) == len(values):  # some call the id of a sentence id
                    ids[name] = values
        distinct = {value for values in ids.values() for value in values}
        if len(distinct) < sum(len(set(values)) for values in ids.values()):  # each split counts from 0
            return {name: [value and f"{name}-{value}" for value in values] for name, values in ids.items()}
        return ids

    def _optional_column(self, key: str, usual: str, split: str, table: ArrowSplit) -> str | None:
        """Return the column that `key` names, or the usual one where the table has it."""
        column: str | None = getattr(self, key)
        if column is None:
            return usual if usual in table.columns else None
        check_column(column, table.columns, key=key, where=f"{self._location()}, split {split!r},")
        return column

    def _range(self, split: str, table: ArrowSplit, start: int, end: int, ids: Sequence[str | None] | None) -> Iterator[Utterance]:
        if not table.files:
            return
        self._check_types(split, table)
        speaker = self._optional_column("speaker_column", "speaker_id", split, table)
        texts = table.values(self.text_column, start, end)
        speakers = table.values(speaker, start, end) if speaker else iter(lambda: "", None)
        places = table.places(self.audio_column, start, end)
        for number, (text, who, (file, row, audio)) in enumerate(zip(texts, speakers, places, strict=False), start):
            name = (ids[number] if ids else None) or f"{split}-{number}"
            whose = "" if who is None else str(who)
            if audio is None:
                yield Utterance(name, file, text or "", whose, row=row, column=self.audio_column)
            else:
                yield Utterance(name, inside(self._folder() or file.parent, audio, where=f"{file}, row {row}"), text or "", whose)

    def _check_types(self, split: str, table: ArrowSplit) -> None:
        """Raise a ConfigError unless the columns are there and hold text and audio."""
        self._check_kinds(split, {column: table.kind(column) for column in table.columns})

    def _check_kinds(self, split: str, kinds: Mapping[str, Any]) -> None:
        """Raise a ConfigError unless the columns are among these and hold text and audio."""
        for key, right, what in (("text_column", is_text, "text"), ("audio_column", is_audio, "encoded audio or paths")):
            column = getattr(self, key)
            check_column(column, kinds, key=key, where=f"{self._location()}, split {split!r},")
            if not right(kinds[column]):
                raise ConfigError(f"column {column!r} of {self._location()} holds {kinds[column]}, not {what}.", key=key)

    # ---- as shards ----

    def _what_it_reads(self) -> str:
        return (
            "only Parquet files are streamed from here: set streaming=false, or take dataset=webdataset for tar archives "
            "(many datasets have a Parquet copy at revision=refs/convert/parquet)."
        )

    def shards(self, split: str) -> Shards:
        """Return the row groups of a split expression; their numbers come from the files' footers."""
        folder = self._folder()
        if folder is not None and any((folder / name).is_file() for name in SAVED):
            raise ConfigError(f"{folder} was written by save_to_disk, which is memory-mapped anyway: set streaming=false.", key="root")
        files = self.files()
        named = [summand.strip().partition("[")[0].partition("(")[0] for summand in split.split("+")]
        for name in named:
            if name not in files:
                raise self.no_such_split(split, name, list(files))
        footers = {name: self._footers(name, files[name], sliced="[" in split or "(" in split) for name in dict.fromkeys(named)}
        groups = {
            name: [(file, group, count) for file, facts in found.items() for group, count in enumerate(facts.row_groups)]
            for name, found in footers.items()
        }
        rows = {name: sum(count for _, _, count in found) for name, found in groups.items()}
        units = tuple(unit for name, start, end in self._ranges(split, rows) for unit in _between(groups[name], start, end))
        columns = {column for found in footers.values() for facts in found.values() for column in facts.schema.names}
        speaker = self.speaker_column or ("speaker_id" if "speaker_id" in columns else None)
        format = ParquetFormat(self.audio_column, self.text_column, speaker, self.id_column)
        return Shards(format, units, sum(unit.num_rows or 0 for unit in units))

    def _footers(self, split: str, files: Sequence[str], *, sliced: bool) -> dict[str, parquet.Footer]:
        """Return the footers of a split's files, whose columns are checked in the first that can be read."""
        found: dict[str, parquet.Footer] = {}
        bad: list[str] = []
        for file, facts in zip(files, parquet.footers(files), strict=True):
            if isinstance(facts, BaseException):
                bad.append(f"{file} {why(facts)}")
            else:
                found[file] = facts
        if bad and (self.on_bad == "fail" or sliced or not found):
            raise DataError(f"{listed(bad, by='; ')}; repair it, or take it out of the corpus.")
        for problem in bad:
            log.warning("a shard is left out: %s", problem)
        for facts in list(found.values())[:1]:
            kinds = dict(zip(facts.schema.names, facts.schema.types, strict=True))
            self._check_kinds(split, kinds)
            for key in ("speaker_column", "id_column"):
                if getattr(self, key) is not None:
                    check_column(getattr(self, key), kinds, key=key, where=f"{self._location()}, split {split!r},")
        return found


def _between(groups: Sequence[tuple[str, int, int]], start: int, end: int) -> Iterator[Unit]:
    """Yield the units that hold the rows from `start` to before `end` of a split."""
    before = 0
    for file, group, count in groups:
        first, last = max(start - before, 0), min(count, end - before)
        if first < last:
            yield Unit(file, group, first, last)
        before += count
