"""The one door to the Hugging Face hub: what the cache has is taken from there, and a hub that doesn't answer is found out once.

In: the name of a model, a tokenizer or a dataset. Out: local files, or one ConfigError that says what was wanted and how to give it
locally. transformers asks the hub for each of a dozen files, each with its own timeout and retries: it is given a folder instead.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from asr.errors import ConfigError
from asr.secrets import redacted

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""How long the hub may take to answer, once a process."""
PATIENCE_SECONDS = 40.0
"""How long a download may go without a byte."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The files of weights, the preferred one first; `<file>.index.json` lists the parts of one that is split."""
VOCABULARIES = ("vocab.json", "tokenizer.json", "vocab.txt", "*.model", "*.py")
"""What a tokenizer has beside its configuration: at least one of these."""
HEAVY = tuple(".bin .safetensors .h5 .msgpack .ot .onnx .pt .pth .ckpt .gguf .tflite .nemo .tar .gz .zip .npz .arpa".split())
"""Endings of files that only those who need them download."""
_GROUPS = {"name_or_path": "model", "tokenizer_name_or_path": "vocabulary"}
T = TypeVar("T")


def is_name(name_or_path: str) -> bool:
    """Say whether this names something on the hub; False for a local folder."""
    return not Path(name_or_path).expanduser().is_dir()


@lru_cache
def file(name: str, file_name: str, *, key: str, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """Return a small file of a model on the hub, from the cache or the hub; raise ConfigError."""
    found = _cached(name, file_name, revision, cache_dir)
    if found is None:
        with _explained(f"{name!r}", key, cache_dir, f"{file_name} and weights"):
            found = _downloaded(name, [file_name], revision, cache_dir)
    return found


@lru_cache
def model_folder(name: str, *, key: str, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """Return the local folder of a model with its weights, from the cache or the hub; raise ConfigError."""
    return _folder(name, "config.json", has_weights, f"the weights of {name!r}", "config.json and weights", key, revision, cache_dir)


@lru_cache
def tokenizer_folder(name: str, *, key: str, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """Return the local folder of a tokenizer, from the cache or the hub; raise ConfigError."""
    what, locally = f"the tokenizer of {name!r}", "tokenizer_config.json and vocab.json or tokenizer.json"
    return _folder(name, "tokenizer_config.json", has_vocabulary, what, locally, key, revision, cache_dir)


def _folder(
    name: str,
    marker: str,
    is_whole: Callable[[Path], bool],
    what: str,
    locally: str,
    key: str,
    revision: str | None,
    cache_dir: str | None,
) -> Path:
    """Return the snapshot that holds `marker` and all that is wanted beside it; downloads what is missing."""
    found = _cached(name, marker, revision, cache_dir)
    if found is not None and is_whole(found.parent):
        return found.parent
    with _explained(what, key, cache_dir, locally):
        weights = WEIGHTS if is_whole is has_weights else ()
        folder = _downloaded(name, [marker], revision, cache_dir, weights=weights, all_small=True).parent
        if not is_whole(folder):
            raise FileNotFoundError(f"it has no {locally}")
        return folder


def has_weights(folder: Path) -> bool:
    """Say whether a folder holds the weights of a model, all parts of them."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return True
        if index.is_file() and all((folder / part).is_file() for part in _parts(index)):
            return True
    return False


def has_vocabulary(folder: Path) -> bool:
    """Say whether a folder holds a tokenizer's tokens."""
    return any(next(folder.glob(pattern), None) for pattern in VOCABULARIES)


def _parts(index: Path) -> set[str]:
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def _cached(name: str, file_name: str, revision: str | None, cache_dir: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file_name, revision=revision, cache_dir=cache_dir)
    except HFValidationError:  # no name of the hub: the download says so
        return None
    return Path(found) if isinstance(found, str) else None


def _downloaded(
    name: str,
    wanted: list[str],
    revision: str | None,
    cache_dir: str | None,
    *,
    weights: Iterable[str] = (),
    all_small: bool = False,
) -> Path:
    """Download files into the cache and return the first one's path; raises what the client raises, and TimeoutError for a stall.

    One after the other, in a thread that dies with this process: the client's own pool would keep it until its last retry.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    check_answers()

    def get(file_name: str) -> Path:
        return Path(hf_hub_download(name, file_name, revision=revision, cache_dir=cache_dir, etag_timeout=ANSWER_SECONDS))

    def work() -> Path:
        first = get(wanted[0])
        there = [f.rfilename for f in HfApi().model_info(name, revision=revision, timeout=ANSWER_SECONDS).siblings] if all_small else []
        for file_name in there:
            if "/" not in file_name and not file_name.endswith(HEAVY) and file_name not in wanted:
                get(file_name)
        for file_name in weights:
            if file_name in there:
                get(file_name)
                break
            if f"{file_name}.index.json" in there:
                for part in sorted(_parts(get(f"{file_name}.index.json"))):
                    get(part)
                break
        return first

    return patiently(work, [cache_folder(cache_dir) / f"models--{name.replace('/', '--')}"])


def opened(url: str) -> Any:
    """Open a file of a repository (hf://...) for reading at any place; what is asked for is fetched, and nothing is kept."""
    return _file_system().open(url, "rb")


def size_of(url: str) -> int:
    """Return the bytes of a file of a repository."""
    return int(_file_system().info(url)["size"])


def _file_system() -> Any:
    from huggingface_hub import HfFileSystem

    if is_offline():
        raise ConnectionError("HF_HUB_OFFLINE is set, and a stream is read from the hub as it goes")
    return HfFileSystem()  # one a process and thread, as fsspec keeps them


def cache_folder(cache_dir: str | None) -> Path:
    """Return where the hub's files are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_dir or HF_HUB_CACHE).expanduser()


def endpoint() -> str:
    """Return the hub's address as it may be shown."""
    from huggingface_hub import constants

    return redacted(constants.ENDPOINT)


def is_offline() -> bool:
    """Say whether the user has forbidden the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def check_answers() -> None:
    """Raise ConnectionError unless the hub may be asked and answers."""
    if is_offline():
        raise ConnectionError("HF_HUB_OFFLINE is set")
    problem = why_silent()
    if problem:
        raise ConnectionError(problem)


@lru_cache
def why_silent() -> str:
    """Ask the hub for a sign of life, once a process; return why there is none, or an empty string.

    In a thread, since looking up a name has no timeout of its own. Any answer below 500 will do.
    """
    said = [f"it doesn't answer within {ANSWER_SECONDS:g} s"]

    def ask() -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        for pause_seconds in (1, 0):
            try:
                status = get_session().head(f"{constants.ENDPOINT}/", timeout=ANSWER_SECONDS).status_code
            except failures() as error:
                if "timeout" not in type(error).__name__.lower():
                    said[0] = reason(error)
                return
            said[0] = f"it answers {status}" if status >= 500 else ""
            if status < 500:
                return
            time.sleep(pause_seconds)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * ANSWER_SECONDS)
    return said[0]


def patiently(work: Callable[[], T], folders: list[Path]) -> T:
    """Return what `work` returns; raise TimeoutError once nothing has come into `folders` for a while and nothing is computed either.

    `work` goes on in its thread, which dies with this process.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below, where someone waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    look_seconds = PATIENCE_SECONDS / 8
    last_sign, seen = time.monotonic(), (-1, 0.0)
    while thread.is_alive():
        thread.join(look_seconds)
        now = (_bytes_in(folders), time.process_time())
        if now[0] != seen[0] or now[1] - seen[1] > look_seconds / 25:  # a conversion computes without a byte for a while
            last_sign = time.monotonic()
        elif time.monotonic() - last_sign > PATIENCE_SECONDS and thread.is_alive():
            raise TimeoutError(f"nothing more came for {PATIENCE_SECONDS:g} s (what has come is kept for the next try)")
        seen = now
    if failed:
        raise failed[0]
    return done[0]


def _bytes_in(folders: list[Path]) -> int:
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # moved to its place meanwhile
                total += path.lstat().st_size
    return total


@contextlib.contextmanager
def cached_datasets_if_silent(name: str) -> Iterator[None]:
    """Let datasets take what its cache has of a dataset where the hub doesn't answer, instead of waiting at every file of it."""
    if is_offline() or not why_silent():
        yield
        return
    import datasets
    from huggingface_hub import constants

    log.warning("%s can't be asked for %s: %s; the cache is looked through", endpoint(), name, why_silent())
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _explained(what: str, key: str, cache_dir: str | None, locally: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one ConfigError."""
    try:
        yield
    except failures() as error:
        cache = cache_folder(cache_dir)
        leaf = key.rpartition(".")[2]
        raise ConfigError(
            f"{what} is neither a local folder, nor whole in the hub's cache ({cache}), nor to be had from {endpoint()}: {reason(error)}. "
            f"Check the name and the network, or give it locally: {_GROUPS[leaf]}.{leaf}=/a/folder with {locally}; "
            "or HF_HUB_OFFLINE=1 and HF_HOME=/a/cache that has it.",
            key=key,
        ) from error


def failures() -> tuple[type[BaseException], ...]:
    """Return what the hub's client raises: its error's base is that of requests before huggingface_hub 1, that of httpx since."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    return (OSError, EntryNotFoundError, HFValidationError, *HfHubHTTPError.__bases__)


def reason(error: BaseException) -> str:
    """Return why something can't be had, in a user's words."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    for kind, words in (
        (GatedRepoError, "its owner must grant you access, and HF_TOKEN must be set"),
        (RepositoryNotFoundError, "it has no such repository, or not for you (HF_TOKEN)"),
        (RevisionNotFoundError, "it has no such revision"),
        (EntryNotFoundError, "the repository has no such file"),
    ):
        if isinstance(error, kind):
            return words
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"it answers {status}"
    if "Timeout" in type(error).__name__ and not isinstance(error, TimeoutError):
        return "it doesn't answer in time"
    said = " ".join(str(error).split()) or type(error).__name__
    for mark, words in (
        ("resolve", f"the name {urlsplit(endpoint()).hostname} doesn't resolve"),
        ("Name or service not known", f"the name {urlsplit(endpoint()).hostname} doesn't resolve"),
        ("refused", "the connection is refused"),
    ):
        if mark in said:
            return words
    return redacted(said[:200].rstrip("."))
