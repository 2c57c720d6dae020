"""An S3 server that lies: a proxy in front of a real one, which damages what passes as a test tells it.

Rules for editing: plain HTTP on loopback, so that what is damaged is certain; a lie is a function of what was asked and the true bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.patience import PATIENCE_S

#: From a request's method, path and body, what the server is given in its place.
UpLie = Callable[[str, str, bytes], bytes]
#: From a request's method, path and the true answer, what the client is given in its place: shorter than announced, it breaks off.
DownLie = Callable[[str, str, bytes], bytes]


@dataclass
class Liar:
    """The proxy; without lies it hands on everything as it is."""

    port: int = 0
    up: UpLie = lambda method, path, body: body
    down: DownLie = lambda method, path, body: body
    etag: Callable[[str], str | None] = lambda path: None  # the ETag to tell in place of the true one
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def lying(target: int) -> Iterator[Liar]:
    """A liar in front of the plain HTTP server at that port, for as long as the block lasts."""
    liar = Liar()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            liar.asked.append(f"{self.command} {self.path}")
            given = liar.up(self.command, self.path, body)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            if given != body:  # a server that checks would notice
                headers = {name: value for name, value in headers.items() if name.lower() != "content-md5"}
                headers["Content-Length"] = str(len(given))
            connection = http.client.HTTPConnection("127.0.0.1", target, timeout=PATIENCE_S)
            connection.request(self.command, self.path, given, headers)
            reply = connection.getresponse()
            true = reply.read()
            connection.close()
            self._answer(reply, true, liar.down(self.command, self.path, true))

        def _answer(self, reply: http.client.HTTPResponse, true: bytes, told: bytes) -> None:
            self.send_response_only(reply.status)
            replaced = liar.etag(self.path)
            for name, value in reply.getheaders():
                if name.lower() == "etag" and replaced:
                    value = replaced
                if name.lower() not in ("transfer-encoding", "connection") and not (name.lower() == "content-length" and true):
                    self.send_header(name, value)
            if true:
                self.send_header("Content-Length", str(len(true)))
            self.end_headers()
            self.wfile.write(told)
            self.close_connection = len(told) != len(true)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 # names that http.server looks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        liar.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, name="liar")
        thread.start()
        try:
            yield liar
        finally:
            server.shutdown()
            thread.join()
