"""Fifty owners at once, and owners of yesterday: one start, one truth in all answers, and nothing done for who has lost the job."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.integration.supervisor_host import PATIENCE, ROUNDS, Host, Kind, Reply, eventually, running
from tests.support.evidence import Tally

pytestmark = pytest.mark.shells
SHELLS = [Kind("dash"), Kind("bash"), Kind("busybox")]
STARTERS = 50
STALE, SEEN, NEWEST = range(5, 10), 10, 14  # tokens: of the past, seen before the race, of the race at most


def at_once(host: Host, calls: list[tuple[object, ...]]) -> list[Reply]:
    """What real processes answer that stand at the start together: each waits for a line, and all get theirs in one go."""
    ready = '[ "$#" -gt 0 ] && read -r _ && exec sh "$0" "$@"'
    waiting = [
        subprocess.Popen(
            [str(host.folder / "bin" / "sh"), "-c", ready, str(host.script), *map(str, call)],
            env=host.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for call in calls
    ]
    for process in waiting:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=PATIENCE) for process in waiting]
    return [Reply(p.returncode, out.decode(), err.decode()) for p, (out, err) in zip(waiting, answers, strict=True)]


def tokens(count: int) -> list[int]:
    """Some stale, some equal to the one seen, some newer; the newest is among them."""
    mixed = [random.choice([*STALE, SEEN, SEEN, *range(SEEN + 1, NEWEST + 1)]) for _ in range(count - 1)]
    return random.sample([*mixed, NEWEST], count)


def race(host: Host, round_: int, count: int) -> tuple[str, Path, list[int], list[tuple[object, ...]]]:
    """A job that has seen a token, the step's own record, and that many owners' tokens with what each calls."""
    job, record = f"race-{round_}", host.folder / f"record-{round_}"
    host.ok("cancel", job, "other", SEEN)
    fences, script = tokens(count), f"echo start >>{record}; exit 3"
    return job, record, fences, [("launch", job, "s.1", fence, "inc1", f"n{i}", 1, 0, script) for i, fence in enumerate(fences)]


def agree(replies: list[Reply], fences: list[int], record: Path, host: Host, job: str) -> None:
    """Everybody was told the one claim there is, or why he is not to know it."""
    for reply, fence in zip(replies, fences, strict=True):
        assert reply.code in ((75,) if fence < SEEN else (0, 74, 75) if fence < NEWEST else (0, 74)), (fence, reply)
        assert reply.code == 0 or (reply.err.startswith("E ") and reply.err.count("\n") == 1), reply
    truth = host.ok("status", job, "s.1").out.splitlines()
    told = {reply.claim for reply in replies if reply.out.startswith(("started", "adopted"))}
    assert told <= set(truth[1:]), (told, truth)
    assert sum(reply.out.startswith("started ") for reply in replies) <= 1
    starts = len(record.read_text().split()) if record.exists() else 0
    assert starts == (0 if truth[0].startswith("cancelled") or truth[0] == "none" else 1), truth
    assert max(path.name for path in (host.root / "j" / job / "fence").iterdir()) == f"{NEWEST:020d}"


@pytest.mark.fault("many-starters")
@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_of_fifty_owners_one_starts(kind: Kind, evidence: Tally) -> None:
    """Stale, equal and newer tokens at once: one start, of which the step keeps its own record; the highest token is remembered."""
    with running(kind) as host:
        for round_ in range(ROUNDS):
            job, record, fences, calls = race(host, round_, STARTERS)
            replies = at_once(host, calls)
            if all(reply.code for reply in replies):  # each found a newer one before its own claim: the newest asks again
                replies.append(host.ok("start", job, "s.1", NEWEST, "inc1", "again", 1, 0))
                fences.append(NEWEST)
            assert host.end_of(job, "s.1").startswith("exited code=3 ")
            agree(replies, fences, record, host, job)
            eventually(lambda job=job: len(host.attempts(job, "s.1")) == 1, "one attempt left")  # type: ignore[misc]
            evidence.ran()


@pytest.mark.fault("many-starters")
@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_of_starters_and_cancellers_one_wins(kind: Kind, evidence: Tally) -> None:
    """Twenty who start and ten who cancel: the step started once, or it never will, and all who were answered know which."""
    with running(kind) as host:
        for round_ in range(ROUNDS):
            job, record, fences, calls = race(host, round_, 30)
            calls[::3] = [("cancel", job, "s.1", fence) for fence in fences[::3]]
            replies = at_once(host, calls)
            state = host.end_of(job, "s.1")
            agree(replies, fences, record, host, job)
            cancels = [reply.line for reply, call in zip(replies, calls, strict=True) if call[0] == "cancel" and reply.code == 0]
            assert all(line.startswith("cancelled") == state.startswith("cancelled") for line in cancels), (state, cancels)
            evidence.ran()


def everything(host: Host, job: str) -> dict[str, tuple[int, int]]:
    """Each file and folder of a job, but for the record of tokens: its size and when it changed."""
    found = [path for path in (host.root / "j" / job).rglob("*") if "fence" not in path.parts]
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path in found if (stat := path.stat())}


@pytest.mark.fault("stale-worker")
@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_who_has_lost_the_job_changes_nothing(kind: Kind, evidence: Tally) -> None:
    """Before the start, while the step runs, while it is stopped, when it has ended and when it was cancelled: each verb says 75."""
    go = "until [ -e {}/go-$RT_JOB ]; do sleep 0.02; done"

    def refused(job: str) -> None:
        before = everything(host, job)
        for words in (
            ("launch", job, "s.1", 8, "inc1", "old", 1, 0, "exit 0"),
            ("start", job, "s.1", 8, "inc1", "old", 1, 0),
            ("launch", job, "s.2", 8, "inc1", "old", 1, 0, "exit 0"),
            ("stop", job, "s.1", 8, 0),
            ("cancel", job, "s.1", 8),
            ("clean", job, 8),
        ):
            reply = host.run(*words)
            assert (reply.code, reply.out) == (75, ""), (words, reply)
            assert reply.err == "E fenced: 8 is older than 00000000000000000009\n"
            evidence.ran()
        assert everything(host, job) == before

    with running(kind) as host:
        wait = go.format(host.folder)
        host.ok("cancel", "new", "other", 9)
        refused("new")
        host.launch("held", "s.1", f"trap '' TERM; echo up; {wait}", fence=9)
        host.wait_for_log("held", "s.1", b"up")
        refused("held")
        host.ok("stop", "held", "s.1", 9, 20)
        eventually((host.attempts("held", "s.1")[0] / "term").exists, "the TERM")
        refused("held")
        (host.folder / "go-held").touch()
        assert host.end_of("held", "s.1").endswith(" why=stop-f9")
        refused("held")
        host.ok("cancel", "new", "s.1", 9)
        refused("new")
        host.ok("clean", "held", 9)
        refused("held")
