"""What corpora in shards have in common: a name on the hub or a folder, its files by split, and reading them without listing them.

In: a hub name or a folder, whose files datasets assigns to splits. Out: the shards of a split for training on them as they are read
(dataset.streaming), and a copy of the split that is evaluated.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from asr import hub
from asr.config import bounded
from asr.errors import ConfigError, DataError, did_you_mean
from asr.secrets import redacted
from asr.sources import Source, Utterance
from asr.streaming import copying
from asr.streaming.shards import Shards

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Sharded(Source):
    """A dataset on the hub or in a folder, `root`, which wins over `path`.

    Raises ConfigError for a dataset, configuration or split that can't be had.
    """

    can_stream: ClassVar[bool] = True
    ENDING: ClassVar[str] = ""
    """How the files of its shards are called."""

    path: str | None = None
    """Name on the hub, such as openslr/librispeech_asr, or a local folder."""
    config_name: str | None = None
    """Configuration of the dataset, such as clean; null where it has but one."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes main."""
    shuffle_buffer_size: int = bounded(500, at_least=1)
    """With streaming: utterances, still encoded, among which each process that trains shuffles; its loader's workers share them."""
    sample_utterances: int = bounded(2000, at_least=1)
    """With streaming: utterances that are looked at beforehand, for a vocabulary and the edges of buckets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.max_train_samples is not None:
            raise ConfigError(
                "a stream has no first utterances: leave it null, and choose shards by train_split or root.", key="max_train_samples"
            )

    def check_reachable(self) -> None:
        self._folder()

    def utterances(self, split: str) -> Iterator[Utterance]:
        """Yield the rows of a split's copy: as many as the source's bounds take of it. A stream's training split isn't copied whole."""
        of_training = self.sample_utterances if self.streaming else self.max_train_samples
        limit = {self.train_split: of_training, self.eval_split: self.max_eval_samples}[split]
        path = copying.copied(self.shards(split), f"{self.name}-{split}", limit=limit, on_bad=self.on_bad)
        for row, (name, text, speaker) in enumerate(copying.rows(path)):
            yield Utterance(name, path, text, speaker, row=row, column=copying.COLUMN)

    def shards(self, split: str) -> Shards:
        """Return the shards of a split, in order; raise ConfigError for a split or a column that isn't there, DataError for bad shards."""
        raise NotImplementedError

    def files(self) -> dict[str, list[str]]:
        """Return the files of each split: paths on this disk, or addresses on the hub with their commit."""
        import datasets

        folder, location = self._folder(), self._location()

        def load() -> Any:
            return datasets.load_dataset_builder(location, self.config_name, revision=self.revision)

        with self._explained():
            if folder is None:
                hub.check_answers()
                builder = hub.patiently(load, [hub.cache_folder(None) / f"datasets--{location.replace('/', '--')}"])
            else:
                builder = load()
        found = {str(split): [str(file) for file in files] for split, files in (builder.config.data_files or {}).items()}
        other = next((file for files in found.values() for file in files if not file.endswith(self.ENDING)), None)
        if other is not None:
            raise ConfigError(f"{location} has {redacted(other)}, and {self._what_it_reads()}", key="root" if self.root else "path")
        return found

    def _what_it_reads(self) -> str:
        """Say which files are read here, and what reads others."""
        return f"this reads *{self.ENDING} files alone."

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
            raise DataError(f"{wanted} can't be read: {first_line(error)}") from error
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
                raise ConfigError(f"{wanted} can't be loaded: {first_line(error)}", key=key) from error
            listed = re.findall(r"'([^']*)'", "".join(re.findall(r"\[(.*?)\]", str(error))[:1]))
            wrong = f"{self._location()} has no configuration {self.config_name!r}" if self.config_name else "is missing"
            choices = f"choose from {', '.join(listed)}, or null for the only one." if listed else first_line(error)
            raise ConfigError(f"{wrong}; {choices}{did_you_mean(self.config_name or '', listed)}", key="config_name") from error
        except DatasetNotFoundError as error:
            raise self._not_to_be_had(wanted, error, key) from error
        except DatasetsError as error:
            if isinstance(error.__cause__, ImportError):  # datasets 4 wants torchcodec to pack audio files, not to read packed ones
                raise ConfigError(
                    f"{wanted} holds separate audio files, not Parquet or Arrow files; dataset=folder reads a local folder of those.",
                    key=key,
                ) from error
            raise DataError(f"{wanted} can't be converted to Arrow files: {first_line(error.__cause__ or error)}") from error
        except hub.failures() as error:  # not there, not reachable, not allowed
            raise self._not_to_be_had(wanted, error, key) from error

    def _not_to_be_had(self, wanted: str, error: BaseException, key: str) -> ConfigError:
        if self._folder():
            return ConfigError(f"{wanted} can't be had: {first_line(error)}.", key=key)
        silent = "HF_HUB_OFFLINE is set" if hub.is_offline() else hub.why_silent()
        reason = f"it is not in the cache, and {hub.endpoint()} can't be asked: {silent}" if silent else first_line(error)
        return ConfigError(
            f"{wanted} can't be had: {reason}. Check the name, the network and HF_TOKEN; without network give a local copy: "
            "dataset.root=/a/folder of its Parquet or Arrow files, or one that save_to_disk wrote (audio files: dataset=folder "
            "dataset.root=/a/folder); or HF_HUB_OFFLINE=1 and HF_HOME=/a/cache that has it.",
            key=key,
        )

    def _split_files(self, split: str, files: Mapping[str, list[str]]) -> list[str]:
        """Return the files of a split such as train+validation, in order."""
        return [file for name in self.split_names(split, files) for file in files[name]]

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
            raise ConfigError(f"{spec!r}: {first_line(error)}; write train[:10%], train[100:200] or train+validation.", key=key) from error
        return [(part.splitname, part.from_, max(part.from_, part.to)) for part in absolute]


def first_line(error: BaseException) -> str:
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
