"""A model hub on loopback: the paths of the Hugging Face hub that huggingface_hub and we ask, with its ways to say no.

Answers follow the public hub's: a missing model is 401 for who has no token and 404 for others, a gated one shows its listing to
everybody and its files to who accepted the licence.

Rules for editing: plain HTTP in a thread of the test's process; what was asked is in `asked`, what was sent in `sent`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


@dataclass
class HubModel:
    """A model with its commits, oldest first; `main` is the newest."""

    commits: list[Files]
    gated: bool = False
    private: bool = False
    readers: set[str] = field(default_factory=set)  # accounts that accepted the licence, or to which it belongs

    def commit(self, revision: str) -> str | None:
        """The commit that a revision is; None if there is no such."""
        named = {commit_of(files): files for files in self.commits}
        newest = list(named)[-1]
        return newest if revision == "main" else revision if revision in named else None

    def files(self, commit: str) -> Files:
        """What is in a commit."""
        return next(files for files in self.commits if commit_of(files) == commit)


@dataclass
class FakeHub:
    """A hub that is empty at first."""

    url: str = ""
    models: dict[str, HubModel] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # token → account
    down: bool = False
    silent: threading.Event | None = None  # nothing is answered until it is set
    says: tuple[int, bytes] | None = None  # the answer to everything: status and body, without a header of the hub's
    asked: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)  # file → times its bytes were sent
    seen: set[str] = field(default_factory=set)  # values of Authorization

    def head(self, name: str) -> str:
        """A model's newest commit."""
        return commit_of(self.models[name].commits[-1])


def commit_of(files: Files) -> str:
    """Forty digits that stand for these files."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()


def folder_files(folder: Path) -> dict[str, bytes]:
    """A folder as the files of a commit."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    """A hub for as long as the block lasts."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Refusal(Exception):
    def __init__(self, status: int, code: str, words: str) -> None:
        self.status, self.code, self.words = status, code, words


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:  # names that http.server looks for
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        try:
            if self.hub.silent:
                self.hub.silent.wait(10)
            if self.hub.says:
                self._send(*self.hub.says, {})
                return
            if self.hub.down:
                raise _Refusal(503, "", "down for maintenance")
            self._serve(path, self._account())
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.words} if refusal.code else {}
            self._send(refusal.status, json.dumps({"error": refusal.words}).encode(), headers)

    def _account(self) -> str | None:
        """Who asks; None for nobody."""
        said = self.headers.get("Authorization")
        if said is None:
            return None
        self.hub.seen.add(said)
        account = self.hub.tokens.get(said.removeprefix("Bearer "))
        if account is None:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        return account

    def _serve(self, path: str, account: str | None) -> None:
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            if account is None:
                raise _Refusal(401, "", "Invalid username or password.")
            self._send_json({"type": "user", "name": account})
        elif parts[:2] == ["api", "models"] and (len(parts) == 4 or parts[4] in ("revision", "tree")):
            name, revision = "/".join(parts[2:4]), "/".join(parts[5:]) or "main"
            model, commit = self._find(name, revision, account)
            (self._tree if "tree" in parts[4:5] else self._listing)(name, model, commit)
        elif len(parts) >= 5 and parts[2] == "resolve":
            name, file = "/".join(parts[:2]), "/".join(parts[4:])
            model, commit = self._find(name, parts[3], account)
            self._file(model, commit, file, account)
        else:
            raise _Refusal(404, "", "no such page")

    def _find(self, name: str, revision: str, account: str | None) -> tuple[HubModel, str]:
        model = self.hub.models.get(name)
        if model is None or (model.private and account not in model.readers):
            words = "Invalid username or password." if account is None else "Repository not found"
            raise _Refusal(401 if account is None else 404, "RepoNotFound", words)
        if (commit := model.commit(revision)) is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return model, commit

    def _listing(self, name: str, model: HubModel, commit: str) -> None:
        siblings = [{"rfilename": file, "size": len(data)} for file, data in model.files(commit).items()]
        gated = "manual" if model.gated else False
        self._send_json({"id": name, "sha": commit, "gated": gated, "private": model.private, "siblings": siblings})

    def _tree(self, name: str, model: HubModel, commit: str) -> None:
        files = model.files(commit).items()
        self._send_json([{"type": "file", "path": file, "size": len(data), "oid": _etag(data)} for file, data in files])

    def _file(self, model: HubModel, commit: str, file: str, account: str | None) -> None:
        if model.gated and account not in model.readers:
            words = "Access to this model is restricted and you are not in the authorized list."
            raise _Refusal(401 if account is None else 403, "GatedRepo", words)
        data = model.files(commit).get(file)
        if data is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        if self.command == "GET":
            self.hub.sent[file] += 1
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        self._send(200, data, headers)

    def _send_json(self, document: object) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
