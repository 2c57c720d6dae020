"""The simulated service behind HTTP: a thread for each connection, and one that lets time pass.

Rules for editing: a body that is no JSON is refused as the real service does; nothing is logged but on request.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import parse_qsl, urlsplit

from remote_trainer.testing.vast import admin, demo, routes, routes_account, routes_instances, routes_money, routes_volumes
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Reply
from remote_trainer.testing.vast.routes import Request, Routes

_TICK_S = 0.05
_BODY_MAX = 1 << 20

ROUTES = Routes(routes.TABLE, routes_instances.TABLE, routes_account.TABLE, routes_money.TABLE, routes_volumes.TABLE, admin.TABLE)


class SimVast(Provider):
    """A simulated Vast.ai that listens on 127.0.0.1; a context manager. `options` are those of Provider."""

    def __init__(self, offers: Sequence[Mapping[str, Any]] | None = None, *, port: int = 0, **options: Any) -> None:
        super().__init__(demo.market() if offers is None else offers, **options)
        self.requests: list[tuple[str, str]] = []  # method and path of everything that was asked
        self._server = _Server(("127.0.0.1", port), self)
        self._ended = threading.Event()
        self._troubles: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sim-vast-http"),
            threading.Thread(target=self._run, name="sim-vast-time"),
        ]

    @property
    def url(self) -> str:
        """Return what VAST_URL is to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def key(self) -> str:
        """Return what VAST_API_KEY is to be."""
        return self.account.key.value

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        with contextlib.ExitStack() as stack:
            stack.callback(self._complain, error)
            self.close()

    def answer(self, request: Request) -> Reply:
        """Answer a request as it would be over HTTP."""
        self.requests.append((request.method, request.path))
        return ROUTES.answer(self, request)

    def wait(self, seconds: float) -> None:
        """Wait so many real seconds, or until the end."""
        self._ended.wait(seconds)

    def _run(self) -> None:
        while not self._ended.wait(_TICK_S):
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001 - it is told where the simulation ends
                self._troubles.append(error)
                return

    def _complain(self, error: BaseException | None) -> None:
        if self._troubles and error is None:
            raise self._troubles[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # clients keep connections open
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], sim: SimVast) -> None:
        self.sim = sim
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "nginx"
    sys_version = ""
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        sim = cast(_Server, self.server).sim
        parts = urlsplit(self.path)
        size = min(int(self.headers.get("Content-Length") or 0), _BODY_MAX)
        raw = self.rfile.read(size) if size else b""
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            return self._send(
                Reply(status=400, body={"success": False, "error": "invalid_request", "msg": "Request body must be valid JSON"})
            )
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        authorization = self.headers.get("Authorization") or (f"Bearer {query['api_key']}" if "api_key" in query else None)
        request = Request(method=self.command, path=parts.path, base=sim.url, query=query, body=body, authorization=authorization)
        return self._send(sim.answer(request))

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - the names that http.server calls

    def _send(self, reply: Reply) -> None:
        sim = cast(_Server, self.server).sim
        if reply.delay_s:
            sim.wait(reply.delay_s)
        if reply.dropped:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = reply.encoded()
        with contextlib.suppress(OSError):  # a client that has gone
            self.send_response(reply.status)
            for name, value in {"Content-Type": reply.content_type, "Content-Length": str(len(data)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server calls it
        """Say nothing."""
