"""The questions we ask a model hub, each one request: typed, bounded in time and size, tried again when it fails by itself.

Rules for editing: a refusal is ``Refused`` with the hub's own words; whatever says nothing about the model is HubUnreachable, an answer
that no hub gives among it: nothing of an answer is believed before its form was looked at. The token travels in one header, and not to
where the hub redirects. What asks is loaded when a hub is asked: hardly a command does.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from remote_trainer.errors import ConfigError, HubUnreachable
from remote_trainer.redact import redact

if TYPE_CHECKING:
    import httpx

PUBLIC = "https://huggingface.co"

_TIMEOUT_S, _CONNECT_S = 10.0, 5.0  # for a piece of an answer, and for the connection
_TRIES = 3
_WITHIN_S = 30.0  # one question with all its tries
_BODY_MAX = 16 << 20  # bytes; the listing of a large model is a hundredth of that
_WORDS_MAX = 300  # characters of the hub's own words that are repeated
_NAME_MAX = 100  # characters of an account's name that are repeated
_SIZE_MAX = 1 << 50  # bytes of one file
_BUSY = (408, 425, 429)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"[!-~]+")


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
        import httpx

        if token and not _TOKEN.fullmatch(token):
            raise ConfigError("the token for the model hub holds spaces or characters that no token has: write it again")
        self.url, self.token = (url or PUBLIC).rstrip("/"), token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            headers=headers, timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_S), follow_redirects=True
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    async def listing(self, name: str, revision: str = "") -> Listing:
        """Return a model's files at a revision, empty for the newest."""
        row = await self._json(f"/api/models/{name}/revision/{quote(revision or 'main', safe='')}?blobs=true")
        commit, siblings = (row.get("sha"), row.get("siblings")) if isinstance(row, dict) else (None, None)
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
            raise HubUnreachable(f"{self.url} answers for {name} with something else than a listing")
        return Listing(commit=commit, files={each["rfilename"]: _size(each) for each in siblings if _is_file(each)})

    async def read(self, name: str, commit: str, path: str) -> Any:
        """Return a small JSON file of a model: the same request that fetches any other of its files."""
        return await self._json(f"/{name}/resolve/{quote(commit, safe='')}/{quote(path)}")

    async def whoami(self) -> str:
        """Return the name of the account that the token belongs to."""
        row = await self._json("/api/whoami-v2")
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise HubUnreachable(f"{self.url} does not say whose token this is")
        return _readable(name, _NAME_MAX)

    async def _json(self, path: str) -> Any:
        try:
            async with asyncio.timeout(_WITHIN_S):
                return await self._tried(path)
        except TimeoutError as error:
            raise HubUnreachable(f"the model hub {self.url} has not answered within {_WITHIN_S:g} s") from error

    async def _tried(self, path: str) -> Any:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

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
        import httpx

        try:
            async with self._client.stream("GET", self.url + path) as answer:
                body = await self._body(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            words = redact(str(error)) or type(error).__name__
            raise HubUnreachable(f"the model hub {self.url} cannot be reached: {words}") from error
        if answer.status_code >= 500 or answer.status_code in _BUSY:
            raise HubUnreachable(f"the model hub {self.url} is out of order (status {answer.status_code})")
        if answer.status_code >= 300:
            code, words = _readable(answer.headers.get("X-Error-Code", ""), _NAME_MAX), _words(answer, body)
            if code or words:
                raise Refused(answer.status_code, code, words)
            raise HubUnreachable(f"what answers at {self.url} is no model hub: status {answer.status_code} without a reason")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HubUnreachable(f"what answers at {self.url} is no model hub: no JSON at {path}") from error

    async def _body(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > _BODY_MAX:
                raise HubUnreachable(f"the model hub {self.url} answers without end: not believed")
        return bytes(body)


def _is_file(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("rfilename"), str)


def _size(row: Mapping[str, Any]) -> int:
    size = row.get("size")
    return size if type(size) is int and 0 <= size <= _SIZE_MAX else 0


def _words(answer: httpx.Response, body: bytes) -> str:
    """Return what the hub says of a refusal, short and without secrets; empty if it is not the hub that speaks."""
    if said := answer.headers.get("X-Error-Message", ""):
        return _readable(said, _WORDS_MAX)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    said = document.get("error") if isinstance(document, dict) else None
    return _readable(said, _WORDS_MAX) if isinstance(said, str) else ""


def _readable(text: str, longest: int) -> str:
    return "".join(char if char.isprintable() else " " for char in redact(text))[:longest].strip()
