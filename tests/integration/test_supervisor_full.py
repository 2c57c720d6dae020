"""The host's disk is full from any line of the supervisor on: who cannot go on says so, and what was started is told truly all the same.

Full of bytes, where nothing can be written, and full of files, where nothing can be made. The step's own record is on another disk.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.supervisor_host import Host, Kind, Reply, eventually, running_small
from tests.integration.supervisor_lines import Play, Scenario, Strike, came_there, install
from tests.integration.test_supervisor_owners import at_once
from tests.support.evidence import Tally
from tests.support.rig import heavy

pytestmark = [pytest.mark.shells, pytest.mark.fault("host-disk-full")]
SHELLS = [Kind("dash"), Kind("bash"), Kind("busybox")]
SAMPLE = 2  # strikes in each scenario and shell where not all are tried
SEED = os.environ.get("RT_SEED", "7")  # chooses them


@contextmanager
def small(kind: Kind) -> Iterator[Host]:
    """A host whose root is a disk of 256 kB and 150 files."""
    with running_small(kind, "256k", names=150) as host:
        install(host)
        yield host


def make_room(host: Host) -> None:
    """Free what the strike has taken."""
    full = host.root / "full"
    if full.is_dir():
        shutil.rmtree(full)
    full.unlink(missing_ok=True)


def clear(reply: Reply, *answers: str) -> bool:
    """Whether a verb did its work; when it did not it must have said that the disk is full, in one line and nothing else."""
    if reply.code == 0:
        assert reply.out.startswith(answers), reply
        return True
    assert (reply.code, reply.out) == (28, ""), reply
    assert reply.err.startswith("E no space left on the host's disk") and reply.err.count("\n") == 1, reply
    return False


def start(play: Play) -> None:
    """Refused and unclaimed, or started and its exit code told on the full disk already; with room again, once."""
    play.host.ok("secrets", play.job, "s.1", stdin="TOKEN=c2VjcmV0\n.\n")
    script = f'{play.note("start")}; [ "$TOKEN" = secret ] || exit 9; exit 3'
    if clear(play.launch(script), "started "):
        assert play.host.end_of(play.job, "s.1").startswith("exited code=3 ")
    else:
        assert play.host.state(play.job, "s.1") == "none"
    make_room(play.host)
    play.settle(script)
    play.judge(3)
    assert not (play.host.step_folder(play.job, "s.1") / "secrets").exists()


def stop(play: Play) -> None:
    """The wish for a grace may get lost, the stop and the exit code do not."""
    script = f'trap "{play.note("term")}; exit 17" TERM; {play.note("start")}; while :; do sleep 0.02; done'
    clear(play.launch(script), "started ")
    if play.host.state(play.job, "s.1") == "none":
        make_room(play.host)
        play.settle(script)
    eventually(lambda: play.happened("start"), "the step")
    clear(play.run("stop", play.job, "s.1", 50, 20), "stopping", "exited")
    if not play.happened("term"):
        play.host.run("stop", play.job, "s.1", 50, 20)
    eventually(lambda: play.host.state(play.job, "s.1").startswith("exited"), "the end")
    make_room(play.host)
    play.judge(17)
    assert play.happened("term") == 1


def cancel(play: Play) -> None:
    """Only who was told "cancelled" may rely on it."""
    cancelled = clear(play.run("cancel", play.job, "s.1", 1), "cancelled f=1")
    assert play.host.state(play.job, "s.1") in ("cancelled f=1", "none")
    make_room(play.host)
    reply = play.settle(f"{play.note('start')}; exit 3")
    if cancelled or "cancelled" in reply.out:
        assert reply.out == "adopted n=cancelled f=1 | cancelled f=1\n" and not play.happened("start")
    else:
        play.judge(3)


def give(play: Play) -> None:
    """Script and secrets come in whole or not at all."""
    script = f'{play.note("start")}; [ "${{TOKEN-none}}" = secret ] && exit 3; exit 4'
    given = clear(play.run("secrets", play.job, "s.1", stdin="TOKEN=c2VjcmV0\n.\n"), "ok")
    prepared = clear(play.run("prep", play.job, "s.1", len(script) + 1, stdin=script + "\n"), "ok")
    make_room(play.host)
    if not prepared:
        assert not (play.host.step_folder(play.job, "s.1") / "cmd").exists()
    play.settle(script)
    play.judge(3 if given else 4)


def clean(play: Play) -> None:
    """Freeing space needs none."""
    play.host.ok("launch", play.job, "s.1", 1, "inc1", "n1", 1, 0, "exit 3")
    play.host.end_of(play.job, "s.1")
    if not clear(play.run("clean", play.job, 1), "ok"):
        make_room(play.host)
        play.host.ok("clean", play.job, 1)
    make_room(play.host)
    assert play.host.state(play.job, "s.1") == "none"


def init(play: Play) -> None:
    """Once set up, always set up: the incarnation stays."""
    clear(play.run("init", "inc2"), "inc inc1")
    make_room(play.host)
    assert play.host.ok("init", "inc3").line == "inc inc1"


SCENARIOS = [
    Scenario(start, ("launch", "__supervise", "__command", "step")),
    Scenario(stop, ("stop", "__supervise")),
    Scenario(cancel, ("cancel",)),
    Scenario(give, ("prep", "secrets")),
    Scenario(clean, ("clean",)),
    Scenario(init, ("init",)),
]


def fill_up(host: Host, scenario: Scenario, sample: int, evidence: Tally) -> None:
    """Plays the scenario, once for each line from which on the disk is full, or for some of them."""
    found = scenario.strikes(host, ("data", "names"))
    host.run("clean", scenario.traced, 1000)
    chosen: list[Strike] = random.Random(SEED).sample(found, min(sample, len(found))) if sample else found
    for number, strike in enumerate(chosen):
        try:
            scenario.play(Play(host, f"{scenario}-{number}", strike))
        except Exception as error:
            error.add_note(str(strike))
            raise
        evidence.ran(came_there(host, f"{scenario}-{number}"))
        make_room(host)
        host.run("clean", f"{scenario}-{number}", 1000)
        shutil.rmtree(host.root / "j", ignore_errors=True)
        (host.root / "j").mkdir()


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_a_disk_that_fills_up_at_some_line(kind: Kind, evidence: Tally) -> None:
    """A sample of the lines, another one each time."""
    with small(kind) as host:
        for scenario in SCENARIOS:
            fill_up(host, scenario, SAMPLE, evidence)


def use_up(host: Host) -> None:
    """Take every file that the disk still has; free what came free meanwhile."""
    full = host.root / "full"
    full.mkdir(exist_ok=True)
    with pytest.raises(OSError, match="No space left"):
        for number in range(1000):
            (full / f"{time.monotonic_ns()}.{number}").touch()


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_who_takes_over_stops_the_step_that_filled_the_disk(kind: Kind) -> None:
    """Where no folder for a new token can be made, the newest of many owners stops the step, and the older ones are sent away."""
    with small(kind) as host:
        host.begin("full", "s.1", "trap 'exit 17' TERM; while :; do sleep 0.02; done")
        use_up(host)
        fences = random.Random(SEED).sample(range(2, 60), 12)
        replies = at_once(host, [("stop", "full", "s.1", fence, 20) for fence in fences])
        for fence, reply in zip(fences, replies, strict=True):
            allowed = (0, 75) if fence < max(fences) else (0,)
            assert reply.code in allowed, (fence, reply)
        assert max(path.name for path in (host.root / "j/full/fence").iterdir()) == f"{max(fences):020d}"
        use_up(host)
        assert host.run("stop", "full", "s.1", 1, 20).code == 75
        assert host.run("stop", "full", "s.1", 100, 20).code == 0
        assert host.run("stop", "full", "s.1", max(fences), 20).code == 75
        assert host.end_of("full", "s.1").startswith("exited code=17 ")


@heavy
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_a_disk_that_fills_up_at_every_line(kind: Kind, scenario: Scenario, evidence: Tally) -> None:
    """Every line of every verb that writes."""
    with small(kind) as host:
        fill_up(host, scenario, 0, evidence)
