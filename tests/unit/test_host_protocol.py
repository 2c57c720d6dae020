"""What a host says is believed only where the protocol has it."""

from __future__ import annotations

import pytest

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
)
from remote_trainer.host import protocol
from remote_trainer.model import StepState
from remote_trainer.ports import Completed, StepStatus

FACTS = """\
inc first-1
fact boot 55025ed9-a42f/25
fact disk_total 1000
fact disk_free 400
fact mem_total 2000
fact cpus 8
fact have_rsync 1
fact have_python3 0
fact have_sha256 openssl
fact gpu 0 NVIDIA_L40S 46068 570.86
fact colour blue
"""


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("none", StepStatus(state=StepState.NONE)),
        ("running size=12", StepStatus(state=StepState.RUNNING, size=12)),
        ("stopping", StepStatus(state=StepState.RUNNING, why="stopping")),
        ("exited code=3 size=40 t=1700000000 why=", StepStatus(state=StepState.EXITED, exit_code=3, size=40)),
        ("exited code=143 size=40 t=1 why=stop-f2", StepStatus(state=StepState.EXITED, exit_code=143, size=40, why="stop-f2")),
        ("cancelled f=7", StepStatus(state=StepState.CANCELLED)),
        ("orphan size=1", StepStatus(state=StepState.ORPHAN, size=1)),
        ("lost why=reboot size=99", StepStatus(state=StepState.LOST, size=99, why="reboot")),
    ],
)
def test_states(text: str, status: StepStatus) -> None:
    """Each state of the supervisor has one meaning."""
    assert protocol.parse_state(text) == status


@pytest.mark.parametrize(
    "text",
    ["", "dancing", "exited", "exited size=3", "running size=-1", "running size=١٢", "exited code=1e3 size=1", f"running size={'9' * 40}",
     "lost why=$(reboot) size=1"],
)  # fmt: skip
def test_states_that_no_supervisor_says(text: str) -> None:
    """Unknown states, missing or odd numbers and words are an error of the host."""
    with pytest.raises(HostError):
        protocol.parse_state(text)


def test_facts() -> None:
    """Facts are read by name; unknown ones are left out."""
    facts = protocol.parse_facts(FACTS, "ssh-ed25519 AAAA")
    assert (facts.incarnation, facts.boot, facts.disk_free, facts.cpus) == ("first-1", "55025ed9-a42f/25", 400, 8)
    assert (facts.gpus, facts.gpu_mem_mib) == (("NVIDIA L40S, 46068 MiB, 570.86",), (46068,))
    assert facts.has == {"rsync", "openssl"}


@pytest.mark.parametrize(
    "reply", ["", "hello", "inc a b", "inc first\nfact disk_free 3", "inc ../x\nfact boot b", FACTS.replace("400", "lots")]
)
def test_facts_that_are_none(reply: str) -> None:
    """A bootstrap whose answer is not the supervisor's is an error of the host."""
    with pytest.raises(HostError):
        protocol.parse_facts(reply, "")


@pytest.mark.parametrize("reply", ["", "started", "started n=1 f=1", "won n=1 | running size=0", "started n=1 | what"])
def test_starts_that_are_none(reply: str) -> None:
    """A reply to a start that is not the supervisor's is an error, never taken for a start."""
    with pytest.raises(HostError):
        protocol.parse_started(reply)


def test_a_step_left_out_of_the_answer() -> None:
    """A status that leaves out a step asked for is an error."""
    with pytest.raises(HostError, match=r"b\.1"):
        protocol.parse_states("a.1 none\n", ["a.1", "b.1"])


@pytest.mark.parametrize(
    ("code", "kind"),
    [(28, HostFull), (72, HostWiped), (73, Conflict), (74, HostError), (75, Fenced), (76, HostWiped), (77, NotFound), (78, InvariantBroken),
     (79, HostLacks), (127, HostLacks), (1, HostUnreachable), (255, HostUnreachable), (-9, HostUnreachable)],
)  # fmt: skip
def test_exit_codes(code: int, kind: type[Exception]) -> None:
    """Each exit code has its error; one that the supervisor does not have says nothing about the step."""
    error = protocol.failure(Completed(code, b"", b"noise\nE the words\n"), "box", "stopping a.1")
    assert type(error) is kind
    assert "box" in str(error)
    assert "the words" in str(error)


def test_words_of_a_host_are_made_harmless() -> None:
    """Control characters and endless lines of a host do not reach a terminal."""
    words = protocol.words(b"E \x1b[31mred\x07" + b"x" * 10_000)
    assert words.isprintable()
    assert len(words) == 300
