"""The test server is a real OpenSSH server, and can be broken in every way the product must survive."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable

import asyncssh
import pytest

from tests.support.patience import PATIENCE_S
from tests.support.sshd import SshdServer

pytestmark = pytest.mark.sshd


async def connect(server: SshdServer) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        server.host,
        server.port,
        username=server.user,
        client_keys=[str(server.key_path)],
        known_hosts=str(server.known_hosts()),
        config=None,
    )


def test_openssh_client_gets_in_with_the_pinned_key(sshd: SshdServer) -> None:
    """A command sent by OpenSSH's own client runs as the current user in an empty home."""
    done = subprocess.run(
        [*sshd.ssh_command(), "id -un; pwd; echo $HOME"], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.split() == [sshd.user, str(sshd.home), str(sshd.home)]


async def test_asyncssh_gets_in_and_sftp_starts_at_home(sshd: SshdServer) -> None:
    """SFTP begins in the same home as the shell."""
    async with await connect(sshd) as connection, connection.start_sftp_client() as sftp:
        assert await sftp.getcwd() == str(sshd.home)


async def test_changed_host_key_is_refused(own_sshd: SshdServer) -> None:
    """After a change of the host key, a client with the old key pinned refuses to talk."""
    pinned = own_sshd.known_hosts_line
    own_sshd.change_host_key()
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await asyncssh.connect(
            own_sshd.host, own_sshd.port, username=own_sshd.user, known_hosts=asyncssh.import_known_hosts(pinned), config=None
        )


async def test_killed_sessions_close_connections_but_not_the_server(own_sshd: SshdServer) -> None:
    """Killing the sessions ends open connections at once; a new one is let in."""
    connection = await connect(own_sshd)
    assert own_sshd.kill_sessions() >= 1
    await asyncio.wait_for(connection.wait_closed(), PATIENCE_S)
    async with await connect(own_sshd) as again:
        assert (await again.run("echo here", check=True)).stdout == "here\n"


async def test_stopped_server_refuses_and_starts_again(own_sshd: SshdServer) -> None:
    """A stopped server refuses connections; started again it has the same key and port."""
    own_sshd.stop()
    with pytest.raises(ConnectionRefusedError):
        await connect(own_sshd)
    own_sshd.start()
    async with await connect(own_sshd):
        pass


async def test_session_limit_is_kept(start_sshd: Callable[..., SshdServer]) -> None:
    """With MaxSessions 10 the eleventh session of a connection is refused, as on a stock server."""
    server = start_sshd(max_sessions=10)
    async with await connect(server) as connection:
        for _ in range(10):
            await connection.create_process("cat")
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.create_process("cat")


async def test_detached_program_outlives_the_server_and_is_found(own_sshd: SshdServer) -> None:
    """What a session detached survives the end of the server, and `close()` leaves nothing behind."""
    async with await connect(own_sshd) as connection:
        await connection.run("setsid sleep 600 >/dev/null 2>&1 </dev/null &", check=True)
    own_sshd.stop()
    (pid,) = own_sshd.programs()
    os.kill(pid, 0)
    own_sshd.close()
    assert own_sshd.programs() == []


async def test_environment_of_sessions_can_be_narrowed(start_sshd: Callable[..., SshdServer]) -> None:
    """A server can be given a PATH on which a program is missing."""
    server = start_sshd(environment={"PATH": "/nowhere"})
    async with await connect(server) as connection:
        assert (await connection.run("rsync --version")).exit_status == 127
