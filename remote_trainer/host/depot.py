"""The data side of a host: which inputs it has, what a job wrote, how its checkpoint gets back. Speaks to depot.sh.

Rules for editing: everything the host says is checked here: numbers, digests, paths. A line that is not what the protocol has is an error
for answers that we act on, and left out of listings, where a training may have made it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from remote_trainer.errors import Conflict, DigestMismatch, HostError, HostFull
from remote_trainer.host import scripts
from remote_trainer.host.protocol import failure, words
from remote_trainer.model import Input
from remote_trainer.ports import Channel, RemoteFile, Transport

_LISTED = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,18}) ([0-9]{1,12}) [0-9]{1,12} [0-9]{1,20} \./(.+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 200_000
_NOT_NOW = 70  # somebody else is at it
_FIND_S = 900.0  # hashing 100 GB of checkpoints takes minutes


@dataclass(frozen=True, slots=True)
class Begun:
    """What a host has of an input: all of it, or the numbers of the chunks that are verified and in place, and parts of others."""

    present: bool
    free: int = 0  # bytes free on its disk
    got: frozenset[int] = frozenset()
    parts: Mapping[int, int] = field(default_factory=dict)  # by number: bytes that are there, not verified yet


@dataclass(frozen=True, slots=True)
class Depot:
    """The verbs of depot.sh on one host. ``root`` is the supervisor's folder, absolute or from ``~``."""

    transport: Transport
    root: str

    async def digests(self) -> frozenset[str]:
        """Return the digests of the inputs that are complete and verified."""
        answer = await self._call("digests", what="asking for the data that is there")
        return frozenset(line for line in answer.decode(errors="replace").splitlines() if _DIGEST.fullmatch(line))

    async def begin(self, given: Input, key: str) -> Begun | None:
        """Claim the transfer of an input for a job; what an earlier connection of this job left running is ended.

        None while another job transfers the same input. HostError while a job that runs has changed it.
        """
        said = await self._call("begin", given.digest, key, what=f"preparing for {given.name}", timeout_s=_FIND_S)
        answer = said.decode(errors="replace")
        match answer.split("\n"):
            case ["present", ""]:
                return Begun(present=True)
            case ["busy", ""]:
                return None
            case [first, *rest, ""] if match := re.fullmatch(r"ready ([0-9]{1,18})", first):
                numbers = frozenset(int(line[4:]) for line in rest if re.fullmatch(r"got [0-9]{1,9}", line))
                parts = [found for line in rest if (found := re.fullmatch(r"part ([0-9]{1,9}) ([0-9]{1,18})", line))]
                return Begun(
                    present=False, free=int(match[1]), got=numbers, parts={int(found[1]): int(found[2]) for found in parts}
                )
        raise HostError(f"{self.transport.address} answered what no depot says: {answer[:100]!r}; its files may be damaged")

    @asynccontextmanager
    async def receiving(self, given: Input, key: str) -> AsyncIterator[Channel]:
        """Open a channel that takes chunks; see ``chunk_line`` and ``outcome``."""
        async with self.transport.open(scripts.call(self.root, "depot", "receive", given.digest, key)) as channel:
            yield channel

    async def finish(self, given: Input, key: str) -> None:
        """Publish an input of which every chunk is verified. Idempotent. HostError when another job took the transfer over."""
        pieces = {chunk.path: None for chunk in given.chunks if chunk.path}
        await self._call(
            "finish", given.digest, key, str(len(given.chunks)), str(given.size),
            stdin="".join(f"{relative(path)}\n" for path in pieces).encode(), what=f"publishing {given.name}", timeout_s=_FIND_S,
        )  # fmt: skip

    async def space(self) -> tuple[int, str]:
        """Return the bytes free on the host's disk and the absolute path of the data folder."""
        answer = (await self._call("space", what="asking for disk space")).decode(errors="replace")
        match = re.fullmatch(r"([0-9]{1,18}) (/.*)\n", answer)
        if not match:
            raise HostError(f"{self.transport.address} does not tell its disk space: {answer[:100]!r}; is df there?")
        return int(match[1]), match[2]

    async def prune(self, keep: int) -> int:
        """Remove inputs, the longest unused first, never a live job's, until at most ``keep`` bytes are left. Returns bytes removed."""
        answer = await self._call("prune", str(keep), what="removing old data", timeout_s=_FIND_S)
        removed = [re.fullmatch(rb"removed [0-9a-f]{64} ([0-9]{1,18})", line) for line in answer.splitlines()]
        return sum(int(match[1]) for match in removed if match)

    async def outputs(self, key: str, globs: Sequence[str], *, settled_s: float) -> Sequence[RemoteFile]:
        """List files of the output folder; see ports.Host.outputs. A digest is computed once per change of a file."""
        pattern = "|".join(f"^{_regex(glob)}$" for glob in globs)
        seconds = str(max(0, round(settled_s)))
        answer = await self._call("outputs", key, seconds, pattern, what="listing outputs", timeout_s=_FIND_S)
        lines = answer.splitlines()
        if len(lines) > _MAX_FILES:
            raise HostError(
                f"{self.transport.address} lists {len(lines)} output files; at most {_MAX_FILES} are kept: narrow the globs"
            )
        return tuple(file for line in lines if (file := _listed(line)))

    async def read(self, key: str, path: str, *, offset: int, limit: int = 1 << 20) -> bytes:
        """Return bytes of a file of the work folder; empty if absent or at its end."""
        answer = await self._call("read", key, relative(path), str(offset), str(limit), what=f"reading {path}")
        if len(answer) > limit:
            raise HostError(f"{self.transport.address} sent more of {path} than was asked for")
        return answer

    async def place(self, key: str, inbox: str, lines: Sequence[tuple[str, str, str]]) -> None:
        """Move pushed files from ``inbox`` to their places: (name there, SHA-256, path in the work folder).

        DigestMismatch names what arrived damaged; the rest is in place.
        """
        wanted = "".join(f"{name} {sha256} {relative(path)}\n" for name, sha256, path in lines).encode()
        answer = await self._call("place", key, inbox, stdin=wanted, what="restoring a checkpoint", timeout_s=_FIND_S)
        placed = {line[3:] for line in answer.decode(errors="replace").splitlines() if line.startswith("ok ")}
        damaged = [path for _, _, path in lines if path not in placed]
        if damaged:
            raise DigestMismatch(
                f"{len(damaged)} files arrived damaged on {self.transport.address}, first {damaged[0]}: send them again"
            )

    async def _call(self, *args: str, what: str, stdin: bytes = b"", timeout_s: float = 60.0) -> bytes:
        done = await scripts.run(self.transport, self.root, "depot", *args, stdin=stdin, timeout_s=timeout_s)
        if done.code == _NOT_NOW:
            raise HostError(f"{what} on {self.transport.address}: {words(done.stderr)}")
        if done.code != 0:
            raise failure(done, self.transport.address, what)
        return done.stdout


def chunk_line(given: Input, number: int, start: int = 0) -> bytes:
    """Return what precedes a chunk's bytes, of which those before ``start`` are there."""
    chunk = given.chunks[number]
    place = f"{chunk.offset} {relative(chunk.path)}" if chunk.path else "- -"
    return f"{number} {chunk.sha256} {chunk.size} {start} {place}\n".encode()


def outcome(line: bytes, address: str) -> tuple[int, bool]:
    """Return (chunk, is it verified and in place). Raises what stopped the host from taking it."""
    match line.decode(errors="replace").strip().split(" ", 2):
        case ["ok" | "bad" as word, number] if number.isdecimal():
            return int(number), word == "ok"
        case ["fail", _, why]:
            reason = "".join(char if char.isprintable() else "?" for char in why)[:200]
            if "No space" in why or "quota" in why:
                raise HostFull(f"{address} has no space left for the data: {reason}; free some disk, or take a host with more")
            raise HostError(f"{address} cannot write the data: {reason}")
    raise HostError(f"{address} answered what no depot says: {line[:100]!r}")


def relative(path: str) -> str:
    """Return the path if it stays inside the folder it is relative to; Conflict otherwise."""
    pure = PurePosixPath(path)
    if path in ("", ".") or pure.is_absolute() or ".." in pure.parts or str(pure) != path or any(ord(char) < 32 for char in path):
        raise Conflict(f"{path!r:.200} is not a plain relative path")
    return path


def _listed(line: bytes) -> RemoteFile | None:
    match = _LISTED.fullmatch(line)
    if not match:
        return None
    try:
        path = relative(match[4].decode())
    except (UnicodeDecodeError, Conflict):
        return None
    return RemoteFile(path=path, size=int(match[2]), mtime=float(match[3]), sha256=match[1].decode())


def _regex(glob: str) -> str:
    """Translate a glob (``*``, ``?``, ``[…]``, ``**``) to the extended regular expressions that every awk has."""
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^]/]+\]|.", glob)
    known = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(p) or (p.replace("[!", "[^", 1) if len(p) > 2 else re.sub(r"[][\\.^$+(){}|]", r"\\\g<0>", p)) for p in parts
    )
