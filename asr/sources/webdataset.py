"""Tar archives as WebDataset packs them: an audio file and its transcript under one name, thousands to an archive.

In: a folder of .tar files, or a dataset of the hub that has them. Out: rows that point into a copy of the archives' utterances, or the
archives themselves to train on as they are read (dataset.streaming). No audio is decoded here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from asr.errors import ConfigError
from asr.sources.sharded import Sharded
from asr.streaming.shards import Shards, Unit
from asr.streaming.tar import TarFormat

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class WebDataset(Sharded):
    """Archives of `root` or of a dataset on the hub. `a.flac` (or wav, mp3, ogg, opus, ...) has its words in `a.txt`, or in `a.json`.

    Names say to which split an archive belongs: train-000000.tar, or a folder train/. Without streaming both splits are copied into
    the cache first.
    """

    ENDING: ClassVar[str] = ".tar"

    text_column: str = "text"
    """Field of the .json that holds the transcript, where there is no .txt."""
    speaker_column: str | None = None
    """Field of the .json that names the speaker; null takes speaker where there is one."""

    @property
    def name(self) -> str:
        return str(self.root or self.path or "webdataset")

    def _what_it_reads(self) -> str:
        return "only .tar archives are read here: unpack compressed ones (gunzip), and read Parquet files by dataset=hub."

    def shards(self, split: str) -> Shards:
        """Return the archives of a split; how many utterances they have is unknown until they are read."""
        if "[" in split or "(" in split:
            key = "train_split" if split == self.train_split else "eval_split"
            raise ConfigError(f"{split!r} is a slice, and archives aren't counted: bound it by max_{key[:-6]}_samples.", key=key)
        units = tuple(Unit(file) for file in self._split_files(split, self.files()))
        return Shards(TarFormat(self.text_column, self.speaker_column), units)
