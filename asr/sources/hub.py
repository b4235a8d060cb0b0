"""Datasets of the Hugging Face hub, and local folders in its formats, through the library datasets.

In: a hub name or a folder of Parquet, Arrow or save_to_disk files, with an audio and a text column. Out: rows that point at
cells of the memory-mapped Arrow files, where whoever decodes reads the bytes without this library. No audio is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asr import hub
from asr.errors import ConfigError, DataError, did_you_mean
from asr.secrets import redacted
from asr.sources import Source, Utterance, check_column, inside
from asr.sources.arrow_split import ArrowSplit, is_audio, is_text

PART_KEYS = ("path config_name revision audio_column text_column speaker_column id_column train_split eval_split").split()
"""What an entry of `parts` may say."""
SPLITS = ("train_split", "eval_split")
SAVED = ("dataset_dict.json", "state.json")
"""What save_to_disk writes beside its Arrow files, for several splits and for one."""


@dataclass(kw_only=True)
class Hub(Source):
    """One dataset, or several joined by `parts`. Splits are expressions: "train+validation", "train[:10%]", "train[100:200]".

    A local folder is given as `root`, which wins over `path`. Raises ConfigError for a dataset, configuration, split or column
    that can't be had.
    """

    train_split: str = "train"
    """A split expression."""
    eval_split: str = "test"
    """A split expression."""
    path: str | None = None
    """Name on the hub, such as openslr/librispeech_asr, or a local folder."""
    config_name: str | None = None
    """Configuration of the dataset, such as clean; null where it has but one."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes main."""
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

    def _folder(self) -> Path | None:
        """Return the local folder of the dataset, or None when it is a name on the hub."""
        if self.root:
            return self.corpus_folder()
        if not self.path:
            raise ConfigError("is missing; name a dataset on the hub, or give a local folder as root.", key="path")
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder.absolute()
        if self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
            raise ConfigError(f"there is no folder {self.path!r}.", key="path")
        return None

    def _location(self) -> str:
        return str(self._folder() or self.path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what datasets raises for a dataset that can't be loaded into an error in a user's words."""
        from datasets.exceptions import DatasetNotFoundError, DatasetsError
        from pyarrow import ArrowException

        key = "root" if self.root else "path"
        wanted = self._location() + (f" (config_name {self.config_name})" if self.config_name else "")
        try:
            yield
        except ArrowException as error:  # before ValueError, which some of them are
            raise DataError(f"{wanted} can't be read: {_first_line(error)}") from error
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            raise ConfigError(
                f"{wanted} is a loading script, which datasets 4 doesn't run. The hub has a Parquet copy of many: try "
                "revision=refs/convert/parquet, or give root a folder of Parquet files.",
                key=key,
            ) from error
        except ValueError as error:
            if "config" not in str(error).lower():
                raise ConfigError(f"{wanted} can't be loaded: {_first_line(error)}", key=key) from error
            listed = re.findall(r"'([^']*)'", "".join(re.findall(r"\[(.*?)\]", str(error))[:1]))
            wrong = f"{self._location()} has no configuration {self.config_name!r}" if self.config_name else "is missing"
            choices = f"choose from {', '.join(listed)}, or null for the only one." if listed else _first_line(error)
            raise ConfigError(f"{wrong}; {choices}{did_you_mean(self.config_name or '', listed)}", key="config_name") from error
        except DatasetNotFoundError as error:
            raise self._not_to_be_had(wanted, error, key) from error
        except DatasetsError as error:
            if isinstance(error.__cause__, ImportError):  # datasets 4 wants torchcodec to pack audio files, not to read packed ones
                raise ConfigError(
                    f"{wanted} holds separate audio files, not Parquet or Arrow files; dataset=folder reads a local folder of those.",
                    key=key,
                ) from error
            raise DataError(f"{wanted} can't be converted to Arrow files: {_first_line(error.__cause__ or error)}") from error
        except hub.failures() as error:  # not there, not reachable, not allowed
            raise self._not_to_be_had(wanted, error, key) from error

    def _not_to_be_had(self, wanted: str, error: BaseException, key: str) -> ConfigError:
        if self._folder():
            return ConfigError(f"{wanted} can't be had: {_first_line(error)}.", key=key)
        silent = "HF_HUB_OFFLINE is set" if hub.is_offline() else hub.why_silent()
        reason = f"it is not in the cache, and {hub.endpoint()} can't be asked: {silent}" if silent else _first_line(error)
        return ConfigError(
            f"{wanted} can't be had: {reason}. Check the name, the network and HF_TOKEN; without network give a local copy: "
            "dataset.root=/a/folder of its Parquet or Arrow files, or one that save_to_disk wrote (audio files: dataset=folder "
            "dataset.root=/a/folder); or HF_HUB_OFFLINE=1 and HF_HOME=/a/cache that has it.",
            key=key,
        )

    def _ranges(self, spec: str, num_rows: dict[str, int]) -> list[tuple[str, int, int]]:
        """Return (split, first row, last row + 1) for every summand of a split expression."""
        import datasets

        for summand in spec.split("+"):
            name = summand.strip().partition("[")[0].partition("(")[0]
            if name not in num_rows:
                raise self.no_such_split(spec, name, list(num_rows))
        try:
            absolute = datasets.ReadInstruction.from_spec(spec).to_absolute(num_rows)
        except ValueError as error:
            key = "train_split" if spec == self.train_split else "eval_split"
            raise ConfigError(f"{spec!r}: {_first_line(error)}; write train[:10%], train[100:200] or train+validation.", key=key) from error
        return [(part.splitname, part.from_, max(part.from_, part.to)) for part in absolute]

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
        for key, right, what in (("text_column", is_text, "text"), ("audio_column", is_audio, "encoded audio or paths")):
            column = getattr(self, key)
            check_column(column, table.columns, key=key, where=f"{self._location()}, split {split!r},")
            kind = table.kind(column)
            if not right(kind):
                raise ConfigError(f"column {column!r} of {self._location()} holds {kind}, not {what}.", key=key)


def _first_line(error: BaseException) -> str:
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
