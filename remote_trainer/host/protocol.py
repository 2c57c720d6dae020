"""What the supervisor's words mean: replies to values, exit codes to errors.

Rules for editing: pure. The host is not trusted: a number, state or name that the protocol does not have is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from remote_trainer.errors import (
    Conflict,
    Fenced,
    HostError,
    HostFull,
    HostLacks,
    HostUnreachable,
    HostWiped,
    InvariantBroken,
    NotFound,
    RemoteTrainerError,
)
from remote_trainer.model import HostFacts, StepState
from remote_trainer.ports import Completed, Heartbeat, StepStatus

NOT_INSTALLED, WIPED = 71, 72  # said by our own call, where the script is missing
NOT_YET = 74  # no claim yet: ask again with a new nonce

_STATES = {
    "none": StepState.NONE,
    "running": StepState.RUNNING,
    "stopping": StepState.RUNNING,
    "exited": StepState.EXITED,
    "cancelled": StepState.CANCELLED,
    "orphan": StepState.ORPHAN,
    "lost": StepState.LOST,
}
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_FLAGS = ("rsync", "python3", "tar", "zstd", "flock")


class NotInstalled(HostUnreachable):
    """The host was set up by another version of us and lacks this version's scripts. Never leaves this package."""


def ended_early(done: Completed, address: str, what: str) -> RemoteTrainerError:
    """Return the error for a follow that ended before the step did."""
    if done.code == NOT_INSTALLED:
        return NotInstalled(f"{what} on {address}: this version's supervisor is not there yet")
    if done.code == 0 or done.code < 0:
        return HostUnreachable(f"{what} on {address}: the follower ended; following again is safe")
    return failure(done, address, what)


def failure(done: Completed, address: str, what: str) -> RemoteTrainerError:
    """Return the error for a verb that did not exit 0."""
    said = words(done.stderr)
    where = f"{what} on {address}"
    match done.code:
        case 28:
            return HostFull(f"{where}: {said}; free some disk, or take a host with more")
        case 73:
            return Conflict(f"{where}: {said}; stop it first")
        case 75:
            return Fenced(f"{where}: {said}")
        case 76 | 72:
            return HostWiped(f"{where}: {said or 'the folder of the supervisor is gone'}; its disk was reset")
        case 77:
            return NotFound(f"{where}: {said}")
        case 78:
            return InvariantBroken(f"{where}: the supervisor refused the request: {said}")
        case 79 | 126 | 127:
            return HostLacks(f"{where}: {said}; install it there, or take another image")
        case 74:
            return HostError(f"{where}: {said}; several starts were given up before they began")
    # `docker exec` to a stopped container, a supervisor that was killed: nothing is known about the step.
    return HostUnreachable(f"{where}: no answer of the supervisor but status {done.code}: {said or 'no words'}")


def words(stderr: bytes) -> str:
    """Return the supervisor's own message, or else the last line, in one short line of printable text."""
    lines = stderr.decode(errors="replace").strip().splitlines() or [""]
    chosen = next((line[2:] for line in reversed(lines) if line.startswith("E ")), lines[-1])
    return "".join(char if char.isprintable() else "?" for char in chosen)[:300]


def parse_state(text: str) -> StepStatus:
    """Return the state of ``exited code=3 size=120 t=… why=…``."""
    name, *rest = text.split() or [""]
    if name not in _STATES:
        raise HostError(f"the host answered what no supervisor says: {text[:100]!r}")
    fields = dict(word.split("=", 1) for word in rest if "=" in word)
    state = _STATES[name]
    code = number(fields["code"]) if state is StepState.EXITED and "code" in fields else None
    if state is StepState.EXITED and code is None:
        raise HostError(f"the host reports an end without an exit code: {text[:100]!r}")
    why = "stopping" if name == "stopping" else fields.get("why", "")
    return StepStatus(state=state, exit_code=code, size=number(fields.get("size", "0")), why=_word(why) if why else "")


def parse_heartbeat(text: str) -> Heartbeat:
    """Return what ``SIZE METRICS OUTPUTS`` says."""
    match text.split():
        case [size, metrics, outputs]:
            return Heartbeat(number(size), number(metrics), "" if outputs == "-" else _word(outputs))
    raise HostError(f"the host answered a ping with {text[:100]!r}")


def parse_started(reply: str) -> StepStatus:
    """Return the state in the reply to a start: ``started|adopted CLAIM | STATE``."""
    head, bar, state = reply.strip().rpartition(" | ")
    if not bar or head.split(" ", 1)[0] not in ("started", "adopted"):
        raise HostError(f"the host answered a start with {reply[:100]!r}")
    return parse_state(state)


def parse_states(reply: str, step_keys: Sequence[str]) -> dict[str, StepStatus]:
    """Return the state of each step asked for, from lines ``STEP STATE``."""
    lines = dict(line.split(" ", 1) for line in reply.splitlines() if " " in line)
    if missing := [key for key in step_keys if key not in lines]:
        raise HostError(f"the host says nothing of {', '.join(missing)}")
    return {key: parse_state(lines[key]) for key in step_keys}


def parse_facts(reply: str, host_key: str) -> HostFacts:
    """Return what ``init`` printed: ``inc X``, then ``fact NAME VALUE`` lines."""
    incarnation, facts, gpus, memories = "", dict[str, str](), list[str](), list[int]()
    for line in reply.splitlines():
        match line.split():
            case ["inc", value]:
                incarnation = _word(value)
            case ["fact", "gpu", _, name, memory, driver]:
                memories.append(number(memory))
                gpus.append(f"{name.replace('_', ' ')}, {memories[-1]} MiB, {driver}"[:200])
            case ["fact", name, value]:
                facts[name] = value
    if not incarnation or "boot" not in facts:
        raise HostError(f"the host answered the bootstrap with {reply[:200]!r}")
    has = {flag for flag in _FLAGS if facts.get(f"have_{flag}") == "1"} | {facts.get("have_sha256", "none")} - {"none"}
    sizes = {name: number(facts.get(name, "0")) for name in ("disk_free", "disk_total", "mem_total", "cpus")}
    return HostFacts(
        incarnation=incarnation,
        boot=_word(facts["boot"]),
        gpus=tuple(gpus),
        gpu_mem_mib=tuple(memories),
        has=frozenset(has),
        host_key=host_key,
        cuda="",  # asked for apart
        **sizes,
    )


def number(text: str) -> int:
    """Return a count that the host sent."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise HostError(f"the host sent {text[:40]!r} where a number belongs")
    return int(text)


def _word(text: str) -> str:
    if not _WORD.fullmatch(text.lstrip("-") or "x"):
        raise HostError(f"the host sent {text[:40]!r} where a name belongs")
    return text
