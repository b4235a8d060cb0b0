"""Files that several runs have in common, made by the first that needs them.

In: a folder of theirs and the files of a run. Out: the same files in another run, as hard links where the file system has them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from asr.files import written

log = logging.getLogger(__name__)

FACTS_FILE = "facts.json"


class Shared:
    """One set of files, held while it is in use: others, on this host and over NFS on others, wait until it is let go.

    `facts` is what its maker said of the set; None while there is none. Files are replaced, never written into, so that a link stays
    what it was when another run's file changes.
    """

    def __init__(self, home: Path, name: str) -> None:
        self.folder = home / name
        self.facts: dict[str, Any] | None = None
        self._lock = -1

    def __enter__(self) -> Shared:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)  # goes with the process, however that ends
        except OSError as error:
            log.warning("%s can't be locked (%s): runs side by side may each prepare their data", self.folder, error.strerror)
        path = self.folder / FACTS_FILE
        if path.is_file():
            self.facts = json.loads(path.read_text(encoding="utf-8"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._lock)

    def put(self, source: Path, names: Sequence[str], facts: dict[str, Any]) -> None:
        """Keep the files and folders of `source` that have these names; they are there once the facts are, which are written last."""
        for name in names:
            _copy(source / name, self.folder / name)
        with written(self.folder / FACTS_FILE) as aside:
            aside.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
        self.facts = facts

    def take(self, target: Path) -> None:
        """Put the files into another folder."""
        for inside in self.folder.iterdir():
            if inside.name != FACTS_FILE:
                _copy(inside, target / inside.name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    elif source.is_file():
        _link(str(source), str(target))


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)  # of a process that was killed
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
