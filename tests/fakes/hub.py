"""A hub on this machine, good or bad in one way, and a cache as the hub's client keeps it."""

import base64
import contextlib
import hashlib
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

COMMIT = "0123456789" * 4


class Fake:
    """A server at `url` that counts who comes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.visits: list[str] = []
        self.created: list[dict[str, object]] = []
        self.taken: dict[str, bytes] = {}


@contextlib.contextmanager
def silent() -> Iterator[Fake]:
    """Accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hub, held = Fake(f"http://127.0.0.1:{listener.getsockname()[1]}"), []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept())
                    hub.visits.append("?")

        threading.Thread(target=accept, daemon=True).start()
        yield hub
        listener.shutdown(socket.SHUT_RDWR)
        for connection, _ in held:
            connection.close()


@contextlib.contextmanager
def closed() -> Iterator[Fake]:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield Fake(f"http://127.0.0.1:{probe.getsockname()[1]}")


@contextlib.contextmanager
def answering(status: int) -> Iterator[Fake]:
    """Gives the same status to everything."""
    with _serving(lambda handler: handler.say(status, b"no")) as hub:
        yield hub


@contextlib.contextmanager
def unknown_name() -> Iterator[Fake]:
    yield Fake("http://no-such-host.invalid")


@contextlib.contextmanager
def serving(folder: Path, *, kind: str = "models", stalls_at: str = "", breaks_at: Mapping[int, str] | None = None) -> Iterator[Fake]:
    """Serves a folder as the repository someone/tiny; of the file `stalls_at` it sends the first half and no more, however often asked.

    `breaks_at` says which of the parts of files that are asked for go wrong, counted from 1: "drops" in its midst, or "refuses" with 429.
    """
    parts = itertools.count(1)

    def answer(handler: Handler) -> None:
        path = handler.path.partition("?")[0]
        if path == "/":
            return handler.say(200, b"")
        if path.startswith(f"/api/{kind}/someone/tiny"):
            return handler.say(200, json.dumps(_api(path, folder, handler.asked)).encode())
        file = folder / path.rpartition("/")[2]
        if "/resolve/" not in path or not file.is_file():
            return handler.say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = file.read_bytes()
        marks = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if handler.command == "GET" and "Range" in handler.headers and not stalls_at:
            return handler.part(content, marks, (breaks_at or {}).get(next(parts), ""))
        return handler.say(200, content, marks, stalls=file.name == stalls_at)

    with _serving(answer) as hub:
        yield hub


def _api(path: str, folder: Path, asked: dict[str, list[str]]) -> object:
    """What the hub's API says of a repository: its files, a listing of its folder, facts of some paths, or the branches."""
    files = sorted(folder.iterdir())
    listed = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": hashlib.sha1(f.read_bytes()).hexdigest()} for f in files]
    if "/tree/" in path:
        return listed
    if "/paths-info/" in path:
        return [entry for entry in listed if entry["path"] in asked.get("paths", [])]
    if path.endswith("/refs"):
        return {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}], "tags": [], "converts": []}
    return {"id": "someone/tiny", "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}


@contextlib.contextmanager
def taking(users: Mapping[str, object], *, status: int = 200) -> Iterator[Fake]:
    """Takes what is pushed: `hub.taken` has the files of a commit by name, `hub.created` what repositories were asked for.

    `users` has what the hub says of a token's owner; `status` is the answer to a commit.
    """

    def answer(handler: Handler) -> None:
        path = handler.path.partition("?")[0]
        who = users.get(handler.headers.get("Authorization", "").removeprefix("Bearer "))
        if path == "/":
            return handler.say(200, b"")
        if who is None:
            return handler.say(401, b"{}")
        if path == "/api/whoami-v2":
            return handler.tell(who)
        if path == "/api/repos/create":
            asked = json.loads(handler.body)
            hub.created.append(asked)
            return handler.tell({"url": f"{hub.url}/{asked.get('organization') or 'me'}/{asked['name']}"})
        if path == "/api/validate-yaml":
            return handler.tell({"warnings": [], "errors": []})
        if "/preupload/" in path:
            files = json.loads(handler.body)["files"]
            return handler.tell({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if "/commit/" not in path or status != 200:
            return handler.say(status if "/commit/" in path else 404, b"{}")
        for line in map(json.loads, handler.body.splitlines()):
            if line["key"] == "file":
                hub.taken[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return handler.tell({"commitOid": COMMIT, "commitUrl": f"{hub.url}/me/tiny/commit/{COMMIT}", "success": True})

    with _serving(answer) as hub:
        yield hub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = b""

    def tell(self, content: object) -> None:
        self.say(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def say(self, status: int, content: bytes, headers: dict[str, str] | None = None, *, stalls: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not stalls:
            self.wfile.write(content)
            return
        if "Range" not in self.headers:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
        while not self.server.over.wait(0.2):
            pass

    def part(self, content: bytes, headers: dict[str, str], goes_wrong: str) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        end = min(int(last) + 1, len(content)) if last else len(content)
        asked = content[int(first) : end]
        if goes_wrong == "refuses":
            return self.say(429, b"too many")
        if goes_wrong == "drops":
            self.send_response(206)
            self.send_header("Content-Length", str(len(asked)))
            self.end_headers()
            self.wfile.write(asked[: len(asked) // 2])
            self.close_connection = True
            return self.wfile.flush()
        return self.say(206, asked, {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"})

    def log_message(self, *_: object) -> None:
        """Nothing: the visits are counted instead."""


@contextlib.contextmanager
def _serving(answer) -> Iterator[Fake]:
    class Answers(Handler):
        def do_GET(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.asked = parse_qs(self.body.decode(errors="replace"))
            hub.visits.append(f"{self.command} {self.path}")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self)

        do_HEAD = do_POST = do_GET  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads, server.over = True, threading.Event()
        hub = Fake(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        server.over.set()
        server.shutdown()
        time.sleep(0.1)


def cache(home: Path, files: Path, *, name: str = "someone/tiny") -> Path:
    """Make the cache of the hub below HF_HOME by hand, as huggingface_hub lays it out: refs/main, snapshots/<commit>."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(files, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return home
