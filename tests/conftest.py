"""What every test runs in: a scrubbed environment, no network but loopback, and real parts where the machine has them.

Rules for editing: fixtures of real parts only hand out what tests/support builds; whether a part exists is decided in
tests/support/suites.py, never in a test.
"""

from __future__ import annotations

from tests.support import environment

HOME = environment.scrub()

import shutil  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.support import sshd as ssh_servers  # noqa: E402
from tests.support.sshd import SshdServer  # noqa: E402


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdServer]:
    """A server shared by the whole run: use it, do not break it."""
    with ssh_servers.running(ssh_servers.prepare(tmp_path_factory.mktemp("sshd") / "server")) as server:
        yield server


@pytest.fixture
def start_sshd(tmp_path: Path) -> Iterator[Callable[..., SshdServer]]:
    """Starts servers of the test's own; takes the options of `sshd.prepare`."""
    started: list[SshdServer] = []

    def start(**options: object) -> SshdServer:
        server = ssh_servers.prepare(tmp_path / f"sshd{len(started)}", **options)  # type: ignore[arg-type]
        started.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in started:
            server.close()


@pytest.fixture
def own_sshd(start_sshd: Callable[..., SshdServer]) -> SshdServer:
    """A server of the test's own: stop it, cut it, change its key."""
    return start_sshd()
