"""Checkpoints on disk: written whole or not at all, known to be whole when read, and never the only good one deleted.

In: a folder that a trainer has filled. Out: `checkpoint-<step>` with a manifest of its files' sizes and hashes. A process
may be killed, and a disk fill up, at any moment: what is being written lies in `.saving`, and gets its name by a rename.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr import permissions
from asr.errors import CheckpointError
from asr.files import sync

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
STATE_FILE = "trainer_state.json"  # the library's
SAVING = ".saving"
DAMAGED = "damaged-"
SCHEMA = 1


def write_errors() -> tuple[type[Exception], ...]:
    """Return what libraries raise where a file can't be written: torch.save a RuntimeError, safetensors an error of its own."""
    from safetensors import SafetensorError

    return OSError, RuntimeError, SafetensorError


_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds what training goes on from after an optimizer step."""

    path: Path

    @property
    def step(self) -> int:
        """The number of optimizer steps that were done."""
        found = _NAME.fullmatch(self.path.name)
        assert found is not None, self.path
        return int(found.group(1))

    def manifest(self) -> dict[str, Any]:
        """Return the content of manifest.json; raise CheckpointError where it can't be read."""
        try:
            content = dict(json.loads((self.path / MANIFEST_FILE).read_text(encoding="utf-8")))
            dict(content["files"])
            return content
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path.name} has no {MANIFEST_FILE}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{MANIFEST_FILE} of {self.path.name} can't be read ({error})") from error

    def problem(self, *, only: Callable[[str], bool] = lambda _: True) -> str | None:
        """Return what is wrong with it, naming the file; None where every file, or every one that `only` asks for, is as it was written."""
        try:
            files = self.manifest()["files"]
        except CheckpointError as error:
            return str(error)
        for name, expected in sorted((name, facts) for name, facts in files.items() if only(name)):
            path = self.path / name
            try:
                size = path.stat().st_size
                if size != expected["bytes"]:
                    return f"{name} of {self.path.name} has {size} bytes, and was written with {expected['bytes']}"
                if hash_of(path) != expected["xxh3_128"]:
                    return f"{name} of {self.path.name} is not what was written (its hash differs)"
            except OSError as error:
                return f"{name} of {self.path.name} can't be read ({error.strerror})"
            except (KeyError, TypeError):
                return f"{MANIFEST_FILE} of {self.path.name} can't be read (no size and hash of {name})"
        return None


def hash_of(path: Path) -> str:
    """Return the XXH3 hash of a file, 128 bits: against accidents, at the speed of memory (https://xxhash.com)."""
    import xxhash

    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            state.update(piece)
    return str(state.hexdigest())


def every(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run by step, looked at by name alone."""
    found = [Checkpoint(path) for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_good(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; report those passed over, and give them another name.

    So they are neither counted among those to keep nor in the way of a new one.
    """
    shutil.rmtree(folder / SAVING, ignore_errors=True)  # what was being written when the process was killed
    for checkpoint in reversed(every(folder)):
        problem = checkpoint.problem()
        if problem is None:
            return checkpoint
        aside = folder / f"{DAMAGED}{checkpoint.path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.path.rename(aside)
        log.warning("a checkpoint is damaged and passed over: %s; it now is %s", problem, aside)
    return None


def begin(folder: Path) -> Path:
    """Return the empty folder that a checkpoint is written into."""
    aside = folder / SAVING
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def publish(written: Path, folder: Path, *, world_size: int) -> Checkpoint:
    """Give a checkpoint, all of whose files are written, its manifest and its place; raise OSError where the disk doesn't take it.

    Every file is on the disk before the manifest, and that before the rename: after a power cut there is all of it, or nothing.
    """
    step = Checkpoint(written).step
    paths = sorted(path for path in written.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    files = {}
    permissions.follow_umask(written)
    for path in paths:
        sync(path)
        files[str(path.relative_to(written))] = {"bytes": path.stat().st_size, "xxh3_128": hash_of(path)}
    manifest = written / MANIFEST_FILE
    manifest.write_text(json.dumps({"schema": SCHEMA, "step": step, "world_size": world_size, "files": files}, indent=1), encoding="utf-8")
    for path in (manifest, *{path.parent for path in paths}, written):
        sync(path)
    place = folder / written.name
    if place.exists():  # of a session that went further than the one that was gone on from
        shutil.rmtree(place)
    written.rename(place)
    discard(written.parent)
    sync(folder)
    return Checkpoint(place)


def discard(written: Path) -> None:
    """Delete what couldn't be written whole."""
    shutil.rmtree(written, ignore_errors=True)


def replace(written: Path, place: Path) -> None:
    """Put a folder in its place, where another may lie: at every moment one of them is whole under its own name or beside it."""
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        sync(path)
    sync(written)
    if place.exists():
        before = place.with_name(f".{place.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        place.rename(before)
        written.rename(place)
        shutil.rmtree(before, ignore_errors=True)
    else:
        written.rename(place)
    sync(place.parent)


def rotate(folder: Path, keep: int | None, *, protect: Collection[Path] = ()) -> None:
    """Delete the oldest checkpoints beyond `keep`; the newest and those of `protect` stay, and count.

    A checkpoint loses its name before its files, so that one half deleted is never taken for one.
    """
    if keep is None or keep <= 0:
        return
    found = every(folder)
    safe = {path.resolve() for path in protect} | {checkpoint.path.resolve() for checkpoint in found[-1:]}
    spare = [checkpoint for checkpoint in found if checkpoint.path.resolve() not in safe]
    for checkpoint in spare[: max(0, len(found) - keep)]:
        log.info("deleting %s: trainer.args.save_total_limit keeps %d", checkpoint.path.name, keep)
        aside = begin(folder) / checkpoint.path.name
        checkpoint.path.rename(aside)
        shutil.rmtree(aside.parent, ignore_errors=True)
