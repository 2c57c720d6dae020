"""The questions we ask a model hub, each one request: typed, bounded in time and size, tried again when it fails by itself.

Rules for editing: a refusal is ``Refused`` with the hub's own words; whatever says nothing about the model is HubUnreachable. The token
travels in one header, and not to where the hub redirects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from remote_trainer.errors import HubUnreachable
from remote_trainer.redact import redact

PUBLIC = "https://huggingface.co"

_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_TRIES = 3
_BODY_MAX = 16 << 20  # bytes; the listing of a large model is a hundredth of that
_WORDS_MAX = 300  # characters of the hub's own words that are repeated
_BUSY = (408, 425, 429)


def offline() -> bool:
    """Is no hub to be asked from this process? The hub's own client reads the same variable."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


class Refused(Exception):
    """The hub answered, and it is a no."""

    def __init__(self, status: int, code: str, words: str) -> None:
        self.status, self.code, self.words = status, code, words
        super().__init__(f"status {status} {code}: {words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One commit of a model."""

    commit: str
    files: Mapping[str, int]  # name → bytes


class Hub:
    """A hub, asked on behalf of a token or of nobody. Use as ``async with Hub(…) as hub``."""

    def __init__(self, url: str = "", token: str | None = None) -> None:
        self.url, self.token = (url or PUBLIC).rstrip("/"), token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, follow_redirects=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    async def listing(self, name: str, revision: str = "") -> Listing:
        """Return a model's files at a revision, empty for the newest."""
        row = await self._json(f"/api/models/{name}/revision/{quote(revision or 'main', safe='')}?blobs=true")
        commit, siblings = row.get("sha"), row.get("siblings")
        if not isinstance(commit, str) or not isinstance(siblings, list):
            raise HubUnreachable(f"{self.url} answers for {name} with something else than a listing")
        return Listing(commit=commit, files={str(each["rfilename"]): _size(each) for each in siblings if _is_file(each)})

    async def read(self, name: str, commit: str, path: str) -> Any:
        """Return a small JSON file of a model: the same request that fetches any other of its files."""
        return await self._json(f"/{name}/resolve/{quote(commit, safe='')}/{quote(path)}")

    async def whoami(self) -> str:
        """Return the name of the account that the token belongs to."""
        return str((await self._json("/api/whoami-v2")).get("name", "?"))

    async def _json(self, path: str) -> Any:
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(_TRIES),
            wait=wait_exponential(multiplier=0.3, max=3.0) + wait_random(0.0, 0.3),
            retry=retry_if_exception_type(HubUnreachable),
            reraise=True,
        ):
            with attempt:
                return await self._ask(path)
        raise AssertionError("tenacity re-raises the last error")

    async def _ask(self, path: str) -> Any:
        try:
            async with self._client.stream("GET", self.url + path) as answer:
                body = await self._body(answer)
        except httpx.HTTPError as error:
            words = redact(str(error)) or type(error).__name__
            raise HubUnreachable(f"the model hub {self.url} cannot be reached: {words}") from error
        if answer.status_code >= 500 or answer.status_code in _BUSY:
            raise HubUnreachable(f"the model hub {self.url} is out of order (status {answer.status_code})")
        if answer.status_code >= 300:
            raise Refused(answer.status_code, answer.headers.get("X-Error-Code", ""), _words(answer, body))
        try:
            return json.loads(body)
        except ValueError as error:
            raise HubUnreachable(f"what answers at {self.url} is no model hub: no JSON at {path}") from error

    async def _body(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > _BODY_MAX:
                raise HubUnreachable(f"the model hub {self.url} answers without end: not believed")
        return bytes(body)


def _is_file(row: Any) -> bool:
    return isinstance(row, dict) and "rfilename" in row


def _size(row: Mapping[str, Any]) -> int:
    size = row.get("size")
    return size if isinstance(size, int) else 0


def _words(answer: httpx.Response, body: bytes) -> str:
    """Return what the hub says of a refusal, short and without secrets."""
    said = answer.headers.get("X-Error-Message", "")
    if not said:
        try:
            document = json.loads(body)
            said = str(document.get("error", "")) if isinstance(document, dict) else ""
        except ValueError:
            said = ""
    return redact(said)[:_WORDS_MAX].strip()
