"""A step starts at most once, and everybody is told the same about it: whoever races, stalls, dies or comes back late."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.supervisor_host import KINDS, PATIENCE, RECORD_START, ROUNDS, Host, Kind, Reply, eventually, running

pytestmark = pytest.mark.shells

BEFORE_THE_CLAIM = ["start.prepared", "start.mkdir", "start.spawned", "sup.pre", "sup.forked", "child.pre", "child.checked"]
AFTER_THE_CLAIM = ["child.claimed", "child.exec", "sup.exited", "sup.preput", "sup.put"]


@pytest.fixture(params=KINDS, ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    kind: Kind = request.param
    with running(kind) as host:
        yield host


def settle(host: Host, job: str, fence: int = 100) -> Reply:
    """What a worker does after a doubt: it starts again, with a new nonce and a higher fence, until it is told of a claim."""
    for attempt in range(20):
        reply = host.run("start", job, "s.1", fence + attempt, "inc1", f"again{attempt}", 1, 0)
        if reply.code == 0:
            return reply
        assert reply.code == 74, reply
    raise AssertionError(f"{job}: never told of a claim")


def test_of_many_starters_exactly_one_starts(host: Host) -> None:
    """Twelve at once, with equal, rising or mixed fences: one start, one claim in all replies, one attempt left on the disk."""
    fences = {"equal": lambda _: 10, "rising": lambda i: 10 + i, "mixed": lambda _: random.choice((10, 11))}
    script = RECORD_START + "sleep 0.05; echo done"
    for round_ in range(ROUNDS):
        for mode, fence in fences.items():
            job = f"{mode}-{round_}"
            with ThreadPoolExecutor(12) as pool:
                launches = [pool.submit(host.launch, job, "s.1", script, nonce=f"n{i}", fence=fence(i)) for i in range(12)]
            replies = [launch.result() for launch in launches] + [settle(host, job)]

            assert {reply.code for reply in replies} <= {0, 74, 75}
            assert len({reply.claim for reply in replies if reply.code == 0}) == 1
            assert host.end_of(job, "s.1").startswith("exited code=0 ")
            assert host.starts(job) == 1
            eventually(lambda job=job: len(host.attempts(job, "s.1")) == 1, "one attempt left")  # type: ignore[misc]


def test_a_crash_anywhere_never_starts_twice(host: Host) -> None:
    """Whichever process of a start is killed at whichever point: at most one start follows, and the state becomes final."""

    def crash(point: str) -> tuple[str, int, str]:
        job = f"crash-{point}"
        host.ok("prep", job, "s.1", stdin=RECORD_START + "exit 3\n")
        host.run("start", job, "s.1", 5, "inc1", "first", 1, 0, RT_FP=point)
        settle(host, job)
        state = host.end_of(job, "s.1")
        return point, host.starts(job), state

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(crash, BEFORE_THE_CLAIM + AFTER_THE_CLAIM))

    for point, _, state in outcomes:
        assert state.startswith(("exited code=3 ", "lost why=supervisor ", "exited code=137 ")), (point, state)
    for point, starts, state in outcomes:
        never_ran = point in ("child.claimed", "child.exec")  # the claim was made by a process that died before the script
        assert starts == (0 if never_ran else 1), (point, starts, state)


def stalled(host: Host, job: str, point: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A starter of fence 5 that stands still at the point until the file is made."""
    gate = host.folder / f"gate-{job}"
    host.ok("prep", job, "s.1", stdin=RECORD_START + "exit 3\n")
    process = host.popen("start", job, "s.1", 5, "inc1", "old", 1, 0, RT_FP=f"{point}@{gate}")
    eventually(lambda: gate.with_name(gate.name + ".reached").exists(), f"the stall at {point}")
    return process, gate


def test_a_stalled_starter_does_not_start_beside_a_newer_owner(host: Host) -> None:
    """An old owner wakes anywhere before its claim, after a newer one has started the step: one start, and it hears whose."""

    def race(point: str) -> None:
        process, gate = stalled(host, f"newer-{point}", point)
        newer = host.ok("start", f"newer-{point}", "s.1", 6, "inc1", "new", 1, 0)
        gate.touch()
        out, _ = process.communicate(timeout=PATIENCE)
        assert newer.out.startswith("started n=new "), (point, newer)
        assert out == b"" or out.decode().startswith(f"adopted {newer.claim} "), (point, out)
        assert host.end_of(f"newer-{point}", "s.1").startswith("exited code=3 ")
        assert host.starts(f"newer-{point}") == 1, point

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(race, [p for p in BEFORE_THE_CLAIM if p not in ("start.spawned", "sup.forked")]))


def test_a_stalled_starter_does_not_start_after_a_cancel(host: Host) -> None:
    """Once a cancel has answered "cancelled", no starter that is still on its way starts the step."""

    def race(point: str) -> None:
        process, gate = stalled(host, f"cancel-{point}", point)
        reply = host.ok("cancel", f"cancel-{point}", "s.1", 6)
        gate.touch()
        process.communicate(timeout=PATIENCE)
        assert reply.line == "cancelled f=6", (point, reply)
        assert host.state(f"cancel-{point}", "s.1") == "cancelled f=6"
        eventually(lambda: not host.attempts(f"cancel-{point}", "s.1") or point == "start.mkdir", "nothing left")
        assert host.starts(f"cancel-{point}") == 0, point

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(race, [p for p in BEFORE_THE_CLAIM if p not in ("start.spawned", "sup.forked")]))


def test_a_repeated_launch_reports_the_first_one(host: Host) -> None:
    """Also with the same nonce, another script, and after the step has ended."""
    first = host.begin("job", "s.1", RECORD_START + "exit 4")
    again = host.launch("job", "s.1", RECORD_START + "exit 5", nonce="n2", fence=2)
    assert again.out.startswith(f"adopted {first.claim} | ")
    assert host.end_of("job", "s.1").startswith("exited code=4 ")
    late = host.launch("job", "s.1", "exit 6", nonce="n1", fence=2)
    assert late.out.startswith(f"adopted {first.claim} | exited code=4 ")
    assert host.starts("job") == 1


def test_a_long_script_is_prepared_through_stdin(host: Host) -> None:
    """A script over the limit of one argument starts all the same; one that was cut short on its way is refused."""
    script = f"{RECORD_START}: '{'x' * 200_000}'\necho ok\n"
    cut = host.run("prep", "job", "s.1", len(script), stdin=script[:100_000])
    assert (cut.code, cut.err.startswith("E ")) == (78, True)
    assert host.run("start", "job", "s.1", 1, "inc1", "n1", 10, 0).code == 77
    host.ok("prep", "job", "s.1", len(script), stdin=script)
    host.ok("start", "job", "s.1", 1, "inc1", "n1", 10, 0)
    assert host.end_of("job", "s.1").startswith("exited code=0 size=3 ")


def test_an_older_owner_is_fenced(host: Host) -> None:
    """Once a higher fence was seen, a lower one may not start, cancel, stop or clean."""
    host.begin("job", "s.1", "exit 0")
    host.ok("cancel", "job", "other", 9)
    older = [
        host.launch("job", "s.2", "exit 0", fence=8),
        host.run("start", "job", "s.1", 8, "inc1", "n2", 1, 0),
        host.run("cancel", "job", "s.2", 8),
        host.run("stop", "job", "s.1", 8, 1),
        host.run("clean", "job", 8),
    ]
    assert [reply.code for reply in older] == [75] * 5
    host.ok("clean", "job", 9)
    assert host.launch("job", "s.1", "exit 0", fence=8).code == 75  # cleaning does not forget


def test_a_wiped_host_starts_nothing(host: Host) -> None:
    """When the root was lost and set up anew, or not at all, a launch that knew the old incarnation is refused."""
    host.begin("job", "s.1", "exit 0")
    host.end_of("job", "s.1")
    subprocess.run(["rm", "-rf", str(host.root)], check=True)
    assert host.launch("job", "s.1", RECORD_START).code == 76
    assert host.ok("init", "inc2").line == "inc inc2"
    assert host.launch("job", "s.1", RECORD_START).code == 76
    assert host.starts("job") == 0


@pytest.mark.parametrize("bad", ["", "-x", ".x", "a/b", "../x", "a b", "a;b", "a\nb", "$(id)", "*", "ä", "x" * 121])
def test_a_strange_name_is_refused(bad: str) -> None:
    """Names become paths, so nothing but letters, digits, dot, dash and underscore gets in."""
    with running(KINDS[0]) as host:
        replies = [
            host.launch(bad, "s.1", "exit 0"),
            host.launch("job", bad, "exit 0"),
            host.launch("job", "s.1", "exit 0", nonce=bad),
            host.run("status", bad, "s.1"),
            host.run("init", bad),
            host.run("clean", bad, 1),
        ]
        assert [reply.code for reply in replies] == [78] * len(replies)
        assert all(reply.err.startswith("E ") for reply in replies)


@pytest.mark.parametrize("bad", ["", "x", "-1", "010", "1 ", "9" * 19, "1+1", "a[$(id)]"])
def test_a_strange_number_is_refused(bad: str) -> None:
    """Numbers are evaluated by the shell, so nothing but digits gets in."""
    with running(KINDS[0]) as host:
        replies = [
            host.run("launch", "job", "s.1", bad, "inc1", "n1", 1, 0, "exit 0"),
            host.run("launch", "job", "s.1", 1, "inc1", "n1", bad, 0, "exit 0"),
            host.run("launch", "job", "s.1", 1, "inc1", "n1", 1, bad, "exit 0"),
            host.run("follow", "job", "s.1", bad),
            host.run("stop", "job", "s.1", 1, bad),
            host.run("clean", "job", bad),
        ]
        assert [reply.code for reply in replies] == [78] * len(replies)


@pytest.mark.parametrize("words", [(), ("nonsense",), ("verb_status",), ("status", "job"), ("launch", "job"), ("__end",)])
def test_a_wrong_call_is_refused(words: tuple[str, ...]) -> None:
    """Also the verbs that the supervisor keeps for itself need their arguments."""
    with running(KINDS[0]) as host:
        assert host.run(*words).code != 0


def test_reserved_nonces_are_refused(host: Host) -> None:
    """They mean something else in a claim."""
    assert [host.launch("job", "s.1", "exit 0", nonce=nonce).code for nonce in ("cancelled", "unknown")] == [78, 78]
