"""SSH as it fails in life: keys that change, servers that refuse, links that go silent, jump hosts, limits."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncssh
import pytest

from remote_trainer.errors import HostKeyMismatch, HostUnreachable
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.netfault import Fault, Link
from remote_trainer.testing.openssh import new_key
from remote_trainer.transport.ssh import SshTransport, streams_for
from tests.support.patience import PATIENCE_S
from tests.support.sshd import SshdServer

Connect = Callable[..., SshTransport]


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    """Makes transports to a server, or to another port in front of it, with its client key."""
    made: list[SshTransport] = []

    def make(server: SshdServer, *, port: int = 0, target: str = "", host_key: str = "", **settings: object) -> SshTransport:
        given: dict[str, object] = {"ssh_key": server.key_path, "connect_timeout_s": PATIENCE_S, **settings}
        where = target or f"{server.user}@{server.host}:{port or server.port}"
        made.append(SshTransport(where, DriverSettings(state_dir=tmp_path, **given), host_key=host_key))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for transport in made:
        await transport.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an empty .ssh."""
    (tmp_path / "home/.ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def keygen(kind: str, passphrase: str, path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path], check=True)


def fingerprint(line: str) -> str:
    return asyncssh.import_public_key(line).get_fingerprint()


# -- host keys


async def test_first_use_pins_and_tells(sshd: SshdServer, connect: Connect, home: Path) -> None:
    """Without any known key the first use accepts the host's, and tells it to be stored."""
    transport = connect(sshd)
    assert transport.host_key == ""
    await transport.run(["true"])
    assert transport.host_key == sshd.host_key_public


@pytest.mark.fault("hostile-host")
@pytest.mark.parametrize("pinned_by", ["option", "known_hosts file", "setting", "first use"])
async def test_changed_host_key_is_permanent(own_sshd: SshdServer, connect: Connect, home: Path, pinned_by: str) -> None:
    """However the key was pinned, another one raises HostKeyMismatch with both fingerprints, and nothing is sent."""
    old = own_sshd.host_key_public
    settings: dict[str, object] = {}
    match pinned_by:
        case "option":
            settings["host_key"] = old
        case "known_hosts file":
            (home / ".ssh/known_hosts").write_text("broken line\n" + own_sshd.known_hosts_line + "\n")
        case "setting":
            settings["known_hosts"] = own_sshd.known_hosts()
    transport = connect(own_sshd, **settings)
    await transport.run(["true"])
    own_sshd.change_host_key()
    with pytest.raises(HostKeyMismatch) as caught:
        for _ in range(3):  # the first may still meet the connection that has just ended
            with pytest.raises(HostUnreachable):
                await transport.run(["true"])
    assert fingerprint(old) in str(caught.value)
    assert fingerprint(own_sshd.host_key_public) in str(caught.value)


async def test_the_known_kind_of_key_is_asked_for(own_sshd: SshdServer, connect: Connect, home: Path) -> None:
    """A server with several host keys shows the one we know, whichever it would prefer."""
    keygen("rsa", "", own_sshd.folder / "rsa_key")
    rsa = " ".join((own_sshd.folder / "rsa_key.pub").read_text().split()[:2])
    config = own_sshd.folder / "sshd_config"
    own_sshd.stop()
    write, own_sshd._config = own_sshd._config, lambda: write() + f"HostKey {own_sshd.folder}/rsa_key\n"  # type: ignore[method-assign]
    own_sshd.start()
    assert "rsa_key" in config.read_text()
    transport = connect(own_sshd, host_key=rsa)
    await transport.run(["true"])
    assert transport.host_key == rsa


# -- clear errors


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("127.0.0.1:1", "connection refused"),
        ("no-such-host.invalid", "cannot be resolved"),
        ("[::1]:1", "refused|cannot|address"),
    ],
)
async def test_what_cannot_be_reached(sshd: SshdServer, connect: Connect, target: str, words: str) -> None:
    """A refused connection and an unknown name say so, and what to look at."""
    with pytest.raises(HostUnreachable, match=words):
        await connect(sshd, target=target).run(["true"])


async def test_wrong_key_is_told_with_its_name(sshd: SshdServer, connect: Connect, tmp_path: Path) -> None:
    """A key that the host does not know is named."""
    new_key(tmp_path / "other")
    with pytest.raises(HostUnreachable, match=r"other.*authorized_keys"):
        await connect(sshd, ssh_key=tmp_path / "other").run(["true"])


async def test_key_with_a_passphrase(sshd: SshdServer, connect: Connect, tmp_path: Path) -> None:
    """A key file that needs a passphrase says so and what to do, instead of asking."""
    path = tmp_path / "locked"
    keygen("ed25519", "secret words", path)
    with pytest.raises(HostUnreachable, match=r"passphrase.*ssh-add"):
        await connect(sshd, ssh_key=path).run(["true"])


async def test_missing_key_file(sshd: SshdServer, connect: Connect, tmp_path: Path) -> None:
    """A key file that is not there is named."""
    with pytest.raises(HostUnreachable, match="absent-key"):
        await connect(sshd, ssh_key=tmp_path / "absent-key").run(["true"])


async def test_a_host_that_takes_the_connection_and_says_nothing(sshd: SshdServer, connect: Connect) -> None:
    """Logging in ends with an error within the time set for it."""
    with Link(sshd.host, sshd.port) as link:
        link.cut()
        with pytest.raises(HostUnreachable, match=r"no answer within 0\.5 s"):
            await connect(sshd, port=link.port, connect_timeout_s=0.5).run(["true"])


# -- breaks


async def test_a_broken_connection_breaks_all_its_channels_at_once(own_sshd: SshdServer, connect: Connect) -> None:
    """When the connection dies, every channel on it raises HostUnreachable, in reading, waiting and writing; none reports an exit."""
    transport = connect(own_sshd)
    async with transport.open(["cat"]) as one, transport.open(["sleep", "600"]) as two, transport.open(["cat"]) as three:
        reading, waiting = asyncio.create_task(one.read()), asyncio.create_task(two.wait())
        await three.write(b"x")
        assert await three.read() == b"x"
        own_sshd.kill_sessions()
        async with asyncio.timeout(PATIENCE_S):
            for broken in (reading, waiting):
                with pytest.raises(HostUnreachable):
                    await broken
            with pytest.raises(HostUnreachable):
                await three.read()
            with pytest.raises(HostUnreachable):
                await three.write(b"y")
    assert (await transport.run(["echo", "again"])).stdout == b"again\n"


async def test_silence_is_noticed_by_keepalives(sshd: SshdServer, connect: Connect) -> None:
    """A link that goes silent without a word is told as HostUnreachable after a few keepalives, and used again when it heals."""
    with Link(sshd.host, sshd.port) as link:
        transport = connect(sshd, port=link.port, keepalive_s=0.3)
        async with asyncio.timeout(PATIENCE_S):  # TCP alone would take a quarter of an hour
            with pytest.raises(HostUnreachable):
                async with transport.open(["cat"]) as channel:
                    link.cut()
                    await channel.read()
            link.heal()
            while (said := await echoed(transport)) is None:  # so short a silence also breaks the line to a busy server
                pass
        assert said == b"back\n"


async def echoed(transport: SshTransport) -> bytes | None:
    """What a command says, None when the line broke."""
    try:
        return (await transport.run(["echo", "back"])).stdout
    except HostUnreachable:
        return None


async def test_logins_wait_longer_after_each_failure(own_sshd: SshdServer, connect: Connect) -> None:
    """Fifty callers of a host that is down cause few logins; once it is up, everybody gets through."""
    transport = connect(own_sshd)
    own_sshd.stop()
    answers = await asyncio.gather(*(transport.run(["true"]) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(answer, HostUnreachable) for answer in answers)
    own_sshd.start()
    done = await asyncio.gather(*(transport.run(["true"]) for _ in range(50)))
    assert {one.code for one in done} == {0}
    assert own_sshd.log.count("Accepted publickey") == 1


async def test_one_connection_for_all(start_sshd: Callable[..., SshdServer], connect: Connect) -> None:
    """Commands share one connection; further ones are opened only when the server's session limit asks for them, and closed after."""
    server = start_sshd(max_sessions=10)
    transport = connect(server)
    for _ in range(15):
        await transport.run(["true"])
    assert server.log.count("Accepted publickey") == 1
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        ready = asyncio.Barrier(40)

        async def hold() -> None:
            async with transport.open(["cat"]):
                await ready.wait()

        for _ in range(40):
            group.create_task(hold())
    # The server may still count a session that has just ended: then one connection holds nine.
    assert 4 <= server.log.count("Accepted publickey") <= 5
    assert (await transport.run(["echo", "one left"])).stdout == b"one left\n"


# -- ~/.ssh/config


async def test_alias_with_its_own_user_port_key_and_known_hosts(
    sshd: SshdServer, connect: Connect, home: Path, tmp_path: Path
) -> None:
    """An alias of ~/.ssh/config brings host, port, user, key and known_hosts, for commands and for rsync."""
    (home / ".ssh/config").write_text(
        f"Host box\n  HostName {sshd.host}\n  Port {sshd.port}\n  User {sshd.user}\n  IdentityFile {sshd.key_path}\n"
        f"  UserKnownHostsFile {sshd.known_hosts()}\n  RequestTTY force\n  ForwardAgent yes\n"
    )
    new_key(tmp_path / "the installation's")
    transport = connect(sshd, target="box", ssh_key=tmp_path / "the installation's")
    done = await transport.run(["sh", "-c", "tty; echo ${SSH_AUTH_SOCK:-none}"])
    assert (done.stdout, transport.host_key) == (b"not a tty\nnone\n", sshd.host_key_public)
    (tmp_path / "file").write_bytes(b"content")
    await transport.push([tmp_path / "file"], str(tmp_path / "there"))
    assert (tmp_path / "there/file").read_bytes() == b"content"


@pytest.mark.fault("hostile-host")
async def test_alias_whose_known_hosts_name_another_key(own_sshd: SshdServer, connect: Connect, home: Path) -> None:
    """The known_hosts file that an alias names is believed."""
    lines = own_sshd.known_hosts()
    (home / ".ssh/config").write_text(f"Host box\n  HostName {own_sshd.host}\n  UserKnownHostsFile {lines}\n")
    own_sshd.change_host_key()
    with pytest.raises(HostKeyMismatch):
        await connect(own_sshd, target=f"{own_sshd.user}@box:{own_sshd.port}").run(["true"])


async def test_jump_host(start_sshd: Callable[..., SshdServer], connect: Connect, home: Path, tmp_path: Path) -> None:
    """ProxyJump is honoured by commands and by rsync; the inner host is judged by its own key."""
    gate, inner = start_sshd(), start_sshd()
    (home / ".ssh/config").write_text(
        f"Host gate\n  HostName {gate.host}\n  Port {gate.port}\n  User {gate.user}\n  IdentityFile {gate.key_path}\n"
        f"  UserKnownHostsFile {gate.known_hosts()}\n"
        f"Host inner\n  HostName {inner.host}\n  Port {inner.port}\n  User {inner.user}\n  IdentityFile {inner.key_path}\n"
        f"  UserKnownHostsFile {tmp_path}/none\n  ProxyJump gate\n"
    )
    transport = connect(inner, target="inner", ssh_key=None)
    done = await transport.run(["sh", "-c", "echo $HOME; cat"], stdin=b"x" * 100_000)
    assert done.stdout == f"{inner.home}\n".encode() + b"x" * 100_000
    assert transport.host_key == inner.host_key_public
    (tmp_path / "file").write_bytes(b"content")
    await transport.push([tmp_path / "file"], str(tmp_path / "there"))
    assert (tmp_path / "there/file").read_bytes() == b"content"
    assert gate.log.count("Accepted publickey") == 2


async def test_unknown_jump_host(start_sshd: Callable[..., SshdServer], connect: Connect, home: Path) -> None:
    """A jump host is the user's own: its key must be known already."""
    gate, inner = start_sshd(), start_sshd()
    (home / ".ssh/config").write_text(
        f"Host gate\n  HostName {gate.host}\n  Port {gate.port}\nHost inner\n  HostName {inner.host}\n  ProxyJump gate\n"
    )
    with pytest.raises(HostUnreachable, match="jump host gate"):
        await connect(inner, target=f"{inner.user}@inner:{inner.port}").run(["true"])


# -- files


@pytest.mark.fault("network-cut")
@pytest.mark.parametrize("with_rsync", [True, False])
async def test_push_goes_on_after_a_break(
    start_sshd: Callable[..., SshdServer], connect: Connect, tmp_path: Path, with_rsync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push that a lost connection cut short goes on from what has arrived; nothing shows under its name before it is whole."""
    if not with_rsync:
        monkeypatch.setattr("remote_trainer.transport.rsync.usable", lambda seen: False)
    server = start_sshd()
    size = 24_000_000
    file = tmp_path / "file"
    file.write_bytes(b"".join(bytes([number % 251]) * 1000 for number in range(size // 1000)))
    target = tmp_path / "there"
    with Link(server.host, server.port) as link:
        transport = connect(server, port=link.port)
        await transport.run(["true"])
        link.set(bytes_per_s=8_000_000)
        link.strike(Fault.RESET, size // 2)
        with pytest.raises(HostUnreachable):
            await transport.push([file], str(target))
        assert not (target / "file").exists()
        link.heal()
        link.set()
        before = link.bytes_up
        await transport.push([file], str(target))
        assert (target / "file").read_bytes() == file.read_bytes()
        assert link.bytes_up - before < size * 0.8


@pytest.mark.fault("hostile-host")
async def test_rsync_refuses_another_host_key(own_sshd: SshdServer, connect: Connect, tmp_path: Path) -> None:
    """rsync's own connection checks the same pinned key."""
    transport = connect(own_sshd)
    (tmp_path / "file").write_bytes(b"content")
    await transport.run(["true"])
    transport._keys.pinned = transport.host_key[:-6] + "AAAAAA"
    with pytest.raises((HostUnreachable, HostKeyMismatch), match=r"verification failed|host key"):
        await transport.push([tmp_path / "file"], str(tmp_path / "there"))
    assert not (tmp_path / "there/file").exists()


@pytest.mark.parametrize(
    ("rtt_s", "files", "streams"), [(0, 9, 1), (0.001, 9, 1), (0.02, 9, 2), (0.1, 9, 6), (0.1, 3, 3), (1, 99, 8), (0.1, 0, 1)]
)
def test_streams_follow_the_round_trip(rtt_s: float, files: int, streams: int) -> None:
    """As many streams as windows fit into a gigabit link's round trip, at most eight and one per file."""
    assert streams_for(rtt_s, files) == streams
