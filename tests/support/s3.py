"""Two S3-compatible servers behind TLS; between them they show what one alone would hide.

ministack keeps checksums and honours conditional writes, but lets any secret in; the JuiceFS gateway, which is MinIO's, checks
signatures, but ignores both. The same suite must pass on each.

Rules for editing: servers run as separate processes from environments of their own; what they wrote before `stop()` is there after
`start()`, so that a test can take the store away and give it back.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support import venvs
from tests.support.patience import PATIENCE_S
from tests.support.process import Server, accepts, free_port
from tests.support.tls import TlsProxy, make_certificates

Kind = Literal["ministack", "juicefs"]
KINDS: tuple[Kind, ...] = ("ministack", "juicefs")


@dataclass
class S3Server:
    """An object store over https; `stop()` makes it unreachable, `start()` brings it back with its objects."""

    kind: Kind
    ca_bundle: Path
    server: Server
    proxy: TlsProxy
    access_key: str = "test-access-key"
    secret_key: str = "test-secret-key"
    region: str = "us-east-1"

    @property
    def endpoint_url(self) -> str:
        """https, on a port that stays the same."""
        return f"https://127.0.0.1:{self.proxy.port}"

    @property
    def access(self) -> dict[str, str]:
        """How to reach it, as the settings of section ``s3`` say it."""
        return {
            "endpoint": self.endpoint_url,
            "region": self.region,
            "key_id": self.access_key,
            "secret_key": self.secret_key,
            "ca_bundle": str(self.ca_bundle),
        }

    def new_bucket(self) -> S3Bucket:
        """An empty bucket with a name of its own."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return S3Bucket(self, name)

    def client(self, *, attempts: int = 3) -> Any:
        """A plain boto3 client, for looking at what the product stored."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            verify=str(self.ca_bundle),
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": attempts},
            ),
        )

    def start(self) -> None:
        """Serve, or serve again."""
        self.server.start()

    def stop(self) -> None:
        """Be down: TLS is still answered, then the connection breaks."""
        self.server.stop()


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """An empty bucket on a server: everything a client has to be told."""

    server: S3Server
    bucket: str

    @property
    def endpoint_url(self) -> str:
        """The server's address, https."""
        return self.server.endpoint_url

    @property
    def access_key(self) -> str:
        """Who asks."""
        return self.server.access_key

    @property
    def secret_key(self) -> str:
        """What proves it."""
        return self.server.secret_key

    @property
    def region(self) -> str:
        """What requests are signed for."""
        return self.server.region

    @property
    def ca_bundle(self) -> Path:
        """The authority to trust."""
        return self.server.ca_bundle

    @property
    def settings(self) -> dict[str, str]:
        """The settings of an installation that keeps its objects here."""
        return {"objects": f"s3://{self.bucket}/kept"} | {f"s3_{name}": value for name, value in self.server.access.items()}


@contextlib.contextmanager
def running(kind: Kind, folder: Path) -> Iterator[S3Server]:
    """A server with an empty store under `folder`, for as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates = make_certificates(folder / "tls")
    port = free_port()
    server, proxy = _MAKERS[kind](folder, port), TlsProxy(certificates, port)
    proxy.start()
    try:
        server.start()
        yield S3Server(kind, certificates.authority, server, proxy)
    finally:
        proxy.stop()
        server.kill()


def missing() -> str | None:
    """Why there are no servers, or None."""
    return next(filter(None, map(venvs.missing, KINDS)), None)


def _ministack(folder: Path, port: int) -> Server:
    environment = {
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": "127.0.0.1",
        "SERVICES": "s3",
        "LOG_LEVEL": "WARNING",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder / "data"),
        "TMPDIR": str(folder),
        # It lets any secret in, but checks presigned links against this one.
        "AWS_ACCESS_KEY_ID": "test-access-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret-key",
        # There is a Docker engine on some machines; the emulator must leave it alone.
        "DOCKER_HOST": "unix:///nonexistent",
    }
    return Server([venvs.program("ministack", "ministack")], folder, lambda: accepts(port), environment)


def _juicefs(folder: Path, port: int) -> Server:
    juicefs = venvs.program("juicefs", "juicefs")
    database, cache = f"sqlite3://{folder}/meta.db", str(folder / "cache")
    storage = ["--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0"]
    done = subprocess.run(
        [juicefs, "format", "--no-update", *storage, database, "store"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    if done.returncode:
        raise RuntimeError(f"juicefs format failed:\n{done.stderr}")
    options = ["--no-banner", "--multi-buckets", "--keep-etag", "--object-meta", "--no-usage-report"]
    places = ["--cache-dir", cache, "--log", str(folder / "gateway.log")]
    environment = {"MINIO_ROOT_USER": "test-access-key", "MINIO_ROOT_PASSWORD": "test-secret-key"}
    command = [juicefs, "gateway", *options, *places, database, f"127.0.0.1:{port}"]
    return Server(command, folder, lambda: accepts(port), environment)


_MAKERS: dict[Kind, Callable[[Path, int], Server]] = {"ministack": _ministack, "juicefs": _juicefs}
