"""rsync over OpenSSH's own client, with the key that asyncssh has pinned: the way of large files to a host.

Rules for editing: the client gets exactly one known_hosts file, ours, and never asks. What is received partly stays in a folder beside
the files and is gone on with; a file appears under its name whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_trainer.errors import HostFull, HostUnreachable
from remote_trainer.ports import Progress
from remote_trainer.transport.connect import CIPHERS, KEEPALIVES_MISSED, Login, config_file
from remote_trainer.transport.stream import Survey, Tally, problem

_ALIAS = "pinned"  # the name under which our known_hosts file has the key, whatever the host is called
_DONE = re.compile(rb"^ *([0-9]+) +[0-9]+% ")  # bytes so far, of --info=progress2 with plain numbers
_BROKEN = (10, 12, 20, 30, 35, 255)  # socket, protocol stream, signal, time-outs, ssh itself


@dataclass(frozen=True, slots=True)
class Shell:
    """What the OpenSSH client needs."""

    login: Login
    host_key: str
    address: str

    def command(self, known_hosts: Path) -> list[str]:
        """Return the client's command line without the host."""
        login, config = self.login, config_file()
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": _ALIAS,
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ControlPath": "none",
            "RequestTTY": "no",
            "RemoteCommand": "none",
            "Compression": "no",
            "Ciphers": ",".join(CIPHERS),
            "ConnectTimeout": str(max(1, round(login.settings.connect_timeout_s))),
            "ServerAliveInterval": str(max(1, round(login.settings.keepalive_s))),
            "ServerAliveCountMax": str(KEEPALIVES_MISSED),
        }
        command = ["ssh", "-F", str(config) if config else "none"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        if login.key_file:
            command += ["-o", "IdentitiesOnly=yes", "-i", str(login.key_file)]
        if login.target.port:
            command += ["-p", str(login.target.port)]
        if login.target.user:
            command += ["-l", login.target.user]
        return command


def usable(seen: Survey) -> bool:
    """Say whether both sides have what it takes."""
    return seen.has_rsync and shutil.which("rsync") is not None and shutil.which("ssh") is not None


async def push(shell: Shell, seen: Survey, *, streams: int, progress: Progress | None) -> None:
    """Send what is missing, over ``streams`` connections."""
    tally = Tally(seen.done, seen.total, progress)
    with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder:
        known_hosts = Path(folder) / "known_hosts"
        known_hosts.write_text(f"{_ALIAS} {shell.host_key}\n")
        try:
            async with asyncio.TaskGroup() as group:
                for files in shares(seen, streams):
                    group.create_task(
                        _push(shell.command(known_hosts), files, seen.folder, shell, tally), name=f"rsync {shell.address}"
                    )
        except ExceptionGroup as several:
            raise several.exceptions[0] from several


def shares(seen: Survey, streams: int) -> list[list[Path]]:
    """Deal the missing files out so that all streams have about the same to do: the largest first, to who has least."""
    hands: list[list[Path]] = [[] for _ in range(streams)]
    loads = [0] * streams
    for file in seen.missing:
        least = loads.index(min(loads))
        hands[least].append(file)
        loads[least] += seen.sizes[file]
    return [hand for hand in hands if hand]


async def _push(ssh: Sequence[str], files: Sequence[Path], folder: str, shell: Shell, tally: Tally) -> None:
    host = f"[{shell.login.target.host}]" if ":" in shell.login.target.host else shell.login.target.host
    argv = [
        "rsync", "--rsh", shlex.join(ssh), "--times", "--size-only", "--partial-dir=.partial", "--protect-args", "--no-human-readable",
        "--info=progress2", "--outbuf=N", f"--timeout={math.ceil(shell.login.settings.stall_s)}",
        "--", *(str(file.absolute()) for file in files), f"{host}:{folder}/",
    ]  # fmt: skip
    async with _child(argv) as process:
        assert process.stdout and process.stderr
        _, said = await asyncio.gather(_follow(process.stdout, tally), process.stderr.read())
        code = await process.wait()
    if code == 0:
        return
    failed = problem(shell.address, f"cannot receive files in {folder}", said)
    if code in _BROKEN and not isinstance(failed, HostFull):
        words = " ".join(said.decode(errors="replace").split())[-300:]
        raise HostUnreachable(f"rsync to {shell.address} broke off (it goes on from there next time): {words}")
    raise failed


async def _follow(output: asyncio.StreamReader, tally: Tally) -> None:
    """Add what rsync says it has sent, line by carriage return."""
    told, rest = 0, b""
    while data := await output.read(1 << 16):
        *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if (found := _DONE.match(line)) and (done := int(found[1])) > told:
                tally.add(done - told)
                told = done


@contextlib.asynccontextmanager
async def _child(argv: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program that ends when we leave: rsync keeps what it has received, here and there, when told to stop."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except BaseException:
                process.kill()
                raise
