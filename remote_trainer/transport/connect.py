"""Opens one SSH connection: ~/.ssh/config, jump hosts, keys, the pinned host key, and every failure in words that help.

Rules for editing: whatever goes wrong leaves as HostUnreachable or HostKeyMismatch, naming the host and what to do. What the user's
configuration asks for beyond reaching the host (agent and X11 forwarding, terminals, port forwards) is never granted to a rented machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import asyncssh

from remote_trainer.errors import ConfigError, HostSilent, HostUnreachable, LoginRefused
from remote_trainer.ports import DriverSettings
from remote_trainer.transport.gather import Gathering
from remote_trainer.transport.hostkeys import HostKeys, Judgement
from remote_trainer.transport.target import Target, parse_target

# AES-GCM first: with both ends' AES instructions it costs half of asyncssh's default, ChaCha20.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr", "aes256-ctr")
_UNSENT = 64 << 10  # bytes that the kernel may hold and has not sent
KEEPALIVES_MISSED = 2  # unanswered ones after which the connection counts as broken


@dataclass(frozen=True, slots=True)
class Login:
    """How to get in: everything one connection needs to know."""

    target: Target
    settings: DriverSettings
    identity: Path | None = None  # private key file; None: settings.ssh_key, the agent, ~/.ssh/config, ~/.ssh/id_*

    @property
    def key_file(self) -> Path | None:
        return self.identity or self.settings.ssh_key


def config_file() -> Path | None:
    """Return the user's SSH configuration, if there is one."""
    path = Path("~/.ssh/config").expanduser()
    return path if os.access(path, os.R_OK) else None


async def connect(login: Login, keys: HostKeys, address: str) -> asyncssh.SSHClientConnection:
    """Return a connection whose host key was judged and is pinned now."""
    judgement = keys.judge(address)
    hops: list[asyncssh.SSHClientConnection] = []
    direct = _Direct()
    try:
        async with asyncio.timeout(login.settings.connect_timeout_s):
            plan = await asyncio.to_thread(_resolve, login)
            for hop in filter(None, plan.jumps.split(",")):
                hops.append(await _connect_hop(hop, login, hops[-1] if hops else direct))
            tunnel = hops[-1] if hops else None if plan.proxy_command else direct
            connection = await _handshake(login, plan, judgement, tunnel)
    except BaseException as error:
        for hop_connection in reversed(hops):
            hop_connection.abort()
        if judgement.verdict:
            raise judgement.verdict from error
        if isinstance(error, OSError | asyncssh.Error | ConfigError | ValueError):
            silent = isinstance(error, TimeoutError) and not direct.taken
            raise explain(error, login, address, silent=silent) from error
        raise
    if hops:
        connection.set_tunnel(hops[-1])  # closed with it
    judgement.accept(cast(asyncssh.SSHKey, connection.get_server_host_key()))
    _queue_little(connection)
    return connection


def _queue_little(connection: asyncssh.SSHClientConnection) -> None:
    """Keep data that waits for a slow line out of the kernel: a keepalive behind minutes of it would be answered too late."""
    held = connection.get_extra_info("socket")
    if held is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # a tunnel's socket may be no TCP one
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What ~/.ssh/config makes of the target."""

    name: str  # what known_hosts knows the host by
    port: int
    jumps: str  # "user@a:22,b"
    proxy_command: bool
    known_hosts: tuple[Path, ...]
    keys: Mapping[str, Any]


def _resolve(login: Login) -> _Plan:
    options = asyncssh.SSHClientConnectionOptions(**_common(login), **_who(login), client_keys=None)
    jumps = options.tunnel if isinstance(options.tunnel, str) else ""
    if options.known_hosts == ():
        listed = ["~/.ssh/known_hosts"]
    else:
        listed = [str(name) for name in cast("list[str] | None", options.known_hosts) or []]
    files = [Path(name).expanduser() for name in listed]
    if login.settings.known_hosts:
        files.insert(0, login.settings.known_hosts)
    # A key that ~/.ssh/config names for this very host is meant before the installation's, not before the one given for the job.
    own_key = login.identity is None and options.config.get("IdentityFile")
    keys = {"client_keys": [str(login.key_file)]} if login.key_file and not own_key else {}
    name = options.host_key_alias or options.host
    return _Plan(name, options.port, jumps, bool(options.proxy_command), tuple(files), keys)


def _common(login: Login) -> dict[str, Any]:
    """Return the options that are the same for a jump host and for the host itself."""
    config = config_file()
    return {
        "config": [str(config)] if config else [],
        "encryption_algs": list(CIPHERS),
        "compression_algs": None,
        "keepalive_interval": login.settings.keepalive_s,
        "keepalive_count_max": KEEPALIVES_MISSED,
        "connect_timeout": None,  # ours covers the jump hosts, too
        "agent_forwarding": False,
        "x11_forwarding": False,
    }


def _who(login: Login) -> dict[str, Any]:
    target = login.target
    given = {"host": target.host, "username": target.user, "port": target.port}
    return {name: value for name, value in given.items() if value is not None}


async def _handshake(login: Login, plan: _Plan, judgement: Judgement, tunnel: Any) -> asyncssh.SSHClientConnection:
    await asyncio.to_thread(judgement.look_up, plan.known_hosts, plan.name, plan.port)
    return await asyncssh.connect(
        **_common(login),
        **_who(login),
        **plan.keys,
        **({"tunnel": tunnel} if tunnel else {}),
        client_factory=lambda: judgement,
        known_hosts=judgement.known,
        server_host_key_algs=judgement.algorithms,
        request_pty=False,
        encoding=None,
    )


async def _connect_hop(hop: str, login: Login, tunnel: Any) -> asyncssh.SSHClientConnection:
    """Log in to a jump host: a machine of the user's, whose key must be in known_hosts."""
    login = replace(login, target=parse_target(hop))
    plan = await asyncio.to_thread(_resolve, login)
    try:
        return await asyncssh.connect(**_common(login), **_who(login), **plan.keys, tunnel=tunnel)
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostUnreachable(
            f"the host key of the jump host {hop} is not in known_hosts, or another one: log in once with `ssh {hop}` and check it"
        ) from error


class _Direct:
    """Opens the TCP connection, in the place where asyncssh expects a tunnel."""

    taken = False  # somebody took it, whatever came after

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncio.Protocol]:
        loop = asyncio.get_running_loop()
        transport, prompt = await loop.create_connection(lambda: _Prompt(factory()), host, port, happy_eyeballs_delay=0.25)
        self.taken = True
        return transport, prompt.inner


class _Prompt(asyncio.Protocol):
    """Acknowledges at once what arrives at first: sshd has Nagle's algorithm on until a session starts, and would wait 40 ms for us."""

    _AT_FIRST = 64  # pieces received: a login and the first command take about twenty

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self._received = 0
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.connection_lost = inner.connection_lost  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket: socket.socket = transport.get_extra_info("socket")
        self.inner.connection_made(Gathering(cast(asyncio.Transport, transport)))

    def pause_writing(self) -> None:
        self.inner.pause_writing()  # looked up now: the pool puts its own there

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)
        self._received += 1
        if self._received > self._AT_FIRST:
            return
        with contextlib.suppress(OSError, AttributeError):  # closed meanwhile; not Linux
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


#: What only a person can change: keys, accounts, configuration.
_OURS_TO_MEND = (asyncssh.KeyEncryptionError, asyncssh.KeyImportError, asyncssh.ConfigParseError, asyncssh.PermissionDenied)


def explain(error: BaseException, login: Login, address: str, *, silent: bool = False) -> HostUnreachable:
    """Return the failure in words: what, to which host, what to do; ``silent``: nobody even took the connection."""
    kind = LoginRefused if isinstance(error, _OURS_TO_MEND) else HostSilent if silent else HostUnreachable
    return kind(f"cannot log in to {address}: {_words(error, login)}")


def _words(error: BaseException, login: Login) -> str:
    match error:
        case asyncssh.KeyEncryptionError():
            return f"the key {login.key_file} could not be decrypted"
        case asyncssh.KeyImportError() if "passphrase" in str(error).lower():
            return f"the key file {login.key_file} is protected by a passphrase: ssh-add it to an agent, or use a key without one"
        case asyncssh.KeyImportError() | asyncssh.ConfigParseError():
            return f"{error}; check the key files and ~/.ssh/config"
        case asyncssh.PermissionDenied():
            key = f"the key {login.key_file}" if login.key_file else "the keys of ~/.ssh and the agent"
            return (
                f"it lets us in neither with {key} ({error.reason}); is the user name right, and the key in its authorized_keys?"
            )
        case socket.gaierror():
            return f"its name cannot be resolved ({error.strerror}); check the spelling, or HostName in ~/.ssh/config"
        case ConnectionRefusedError():
            return "connection refused: nothing listens there; is sshd running, is the port right, has the machine booted?"
        case TimeoutError():
            waited = f"no answer within {login.settings.connect_timeout_s:g} s"
            return f"{waited}; is the address right, the machine on, the port open in its firewall?"
        case FileNotFoundError():
            return f"the key file {login.key_file} is not there"
        case asyncssh.ConnectionLost() | ConnectionResetError():
            return "it closed the connection before the login; too many logins at once (MaxStartups), or blocked for a while?"
        case asyncssh.KeyExchangeFailed():
            return f"no common encryption: {error.reason}"
        case _:
            return str(error) or type(error).__name__
