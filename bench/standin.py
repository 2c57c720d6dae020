"""Many hosts in one light process: an SSH server that speaks our supervisor's protocol and runs nothing.

A thousand real followed steps are some five thousand processes, which a small machine cannot carry beside the worker that is to be
measured. To the worker this is the real thing: real connections, execs and channels, the real words. Every step "runs" for ever and
writes a line when its turn comes; the line is its time of writing.

    python -m bench.standin FOLDER      # answers on 127.0.0.0/8, so each host has an address of its own

stdin takes `rate N` (lines a second of each step) and `follows`; the answer to that is one line: follows open, follows begun so far.

Rules for editing: only what a worker asks of a running job; what is not known is refused, so that a change of protocol is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

_LINE = 64  # bytes
_SLOTS = 50  # the steps' turns are spread over the second
_CLAIM = "n=standin f=1 pid=1 st=1 id=standin t=0"
_FACTS = (
    "inc standin\nfact boot standin\nfact disk_total 1000000000000\nfact disk_free 1000000000000\nfact mem_total 64000000000\n"
    "fact cpus 8\nfact have_flock 1\nfact have_sha256 openssl\n"
)


@dataclass
class Step:
    """A step that writes."""

    log: bytearray = field(default_factory=bytearray)
    readers: set[asyncssh.SSHServerProcess[bytes]] = field(default_factory=set)

    def write_line(self) -> None:
        line = f"{time.time():.6f}".encode().ljust(_LINE - 1) + b"\n"
        self.log += line
        for reader in self.readers:
            reader.stdout.write(line)


class Hosts:
    """All steps of all hosts."""

    def __init__(self) -> None:
        self.steps: defaultdict[str, Step] = defaultdict(Step)
        self.rate = 0.0
        self.begun = 0
        self.execs = 0

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Answer one exec."""
        self.execs += 1
        words = shlex.split(process.command or "")
        if words == ["exec", "true"]:
            process.exit(0)
            return
        script, verb, *args = words[6:]  # exec sh -c CALL sh ROOT SCRIPT VERB ARGS…
        with contextlib.suppress(BrokenPipeError, asyncssh.ConnectionLost):
            process.exit(await self._answer(script.partition("-")[0], verb, args, process))

    async def _answer(self, script: str, verb: str, args: Sequence[str], process: asyncssh.SSHServerProcess[bytes]) -> int:
        reply = ""
        match script, verb:
            case "supervisor", "init":
                reply = _FACTS
            case "supervisor", "launch":
                reply = f"started {_CLAIM} | running size={self._size(args[0], args[1])}\n"
            case "supervisor", "statuses":
                reply = "".join(f"{step} running size={self._size(args[0], step)}\n" for step in args[1:])
            case "supervisor", "follow":
                await self._follow(self.steps[f"{args[0]}/{args[1]}"], int(args[2]), process)
            case "depot", "outputs" | "read":
                pass
            case _:
                process.stderr.write(f"E no such verb here: {script} {verb}\n".encode())
                return 78
        process.stdout.write(reply.encode())
        return 0

    def _size(self, job: str, step: str) -> int:
        return len(self.steps[f"{job}/{step}"].log)

    async def _follow(self, step: Step, offset: int, process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stderr.write(f"C {_CLAIM} | running size={len(step.log)}\n".encode())
        process.stdout.write(bytes(step.log[offset:]))
        step.readers.add(process)
        self.begun += 1
        try:
            async for line in process.stdin:
                if line.startswith(b"P"):
                    process.stderr.write(b"H %d 0 -\n" % len(step.log))
        finally:
            step.readers.discard(process)

    async def write(self) -> None:
        """Let the steps write, each at its own time within the second."""
        slot, at = 0, time.monotonic()
        while True:
            at += 1 / _SLOTS / max(self.rate, 1.0)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            slot = (slot + 1) % _SLOTS
            if self.rate:
                for number, step in enumerate(list(self.steps.values())):
                    if number % _SLOTS == slot:
                        step.write_line()

    @property
    def open(self) -> int:
        return sum(len(step.readers) for step in self.steps.values())


async def _commands(hosts: Hosts) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).split():
        match line:
            case [b"rate", value]:
                hosts.rate = float(value)
            case [b"follows"]:
                print(hosts.open, hosts.begun, hosts.execs, flush=True)


async def main(folder: Path) -> None:
    """Serve until stdin ends; prints the port first."""
    hosts = Hosts()
    server = await asyncssh.create_server(
        asyncssh.SSHServer,
        "0.0.0.0",  # all of 127.0.0.0/8; a stranger can do nothing there
        0,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "authorized_keys"),
        process_factory=hosts.serve,
        encoding=None,
        line_editor=False,
        backlog=1000,
    )
    print(server.get_port(), flush=True)
    writing = asyncio.create_task(hosts.write(), name="writing")
    try:
        await _commands(hosts)
    finally:
        writing.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
