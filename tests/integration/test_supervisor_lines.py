"""Killed before any line, the supervisor leaves nothing half done: a step starts at most once, and its end is told or provably lost."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.supervisor_host import Host, Kind, eventually, running
from tests.integration.supervisor_lines import Play, Scenario, Strike, came_there, install
from tests.support.evidence import Tally
from tests.support.rig import heavy

pytestmark = [pytest.mark.shells, pytest.mark.fault("supervisor-killed")]
SHELLS = [Kind("dash"), Kind("bash"), Kind("busybox")]
SAMPLE = 4  # strikes in each scenario and shell where not all are tried
SEED = os.environ.get("RT_SEED", "7")  # chooses them
KILLS = ("process", "parent", "all")


def start_and_end(play: Play) -> None:
    """A step with a secret is started and ends by itself."""
    play.host.ok("secrets", play.job, "s.1", stdin="TOKEN=c2VjcmV0\n.\n")
    script = f'{play.note("start")}; [ "$TOKEN" = secret ] || exit 9; printf out; exit 3'
    first = play.launch(script)
    told = play.settle(script)
    assert first.code in (0, 74, -9) and (first.code != 0 or first.claim == told.claim), (first, told)
    state = play.judge(3)
    nonce = told.claim.split()[0].removeprefix("n=")
    log = (play.host.step_folder(play.job, "s.1") / f"a.{nonce}" / "log").read_bytes()
    assert log in (b"out", b"") and f" size={len(log)} " in state + " ", (state, log)
    assert log == b"out" or not state.startswith("exited code=3 "), state


def stop(play: Play) -> None:
    """A running step is stopped; it saves and ends, and hears of it once."""
    script = f'trap "{play.note("term")}; sleep 0.1; exit 17" TERM; {play.note("start")}; while :; do sleep 0.05; done'
    play.launch(script)
    play.settle(script)
    eventually(lambda: play.happened("start") or play.host.state(play.job, "s.1").startswith(("exited", "lost")), "the step")
    play.run("stop", play.job, "s.1", 50, 2)
    eventually(lambda: play.host.run("stop", play.job, "s.1", 50, 2).line != "stopping", "the end")
    # Whoever takes the TERM upon itself may die before it is sent: then nobody dares to, and the step hears of the KILL only.
    silent = play.strike and play.strike.verb in ("__supervise", "__end") and not play.happened("term")
    play.judge(137 if silent else 17)
    assert play.happened("term") <= 1


SCENARIOS = [Scenario(start_and_end, ("launch", "__supervise", "__command", "step")), Scenario(stop, ("stop", "__supervise"))]


def survive(host: Host, scenario: Scenario, chosen: list[Strike], evidence: Tally) -> None:
    """Plays the scenario once for each strike."""

    def one(numbered: tuple[int, Strike]) -> bool:
        number, strike = numbered
        try:
            scenario.play(Play(host, f"j{number}", strike))
        except Exception as error:
            error.add_note(str(strike))
            raise
        return came_there(host, f"j{number}")

    with ThreadPoolExecutor(3) as pool:
        struck = sum(pool.map(one, enumerate(chosen)))
    evidence.ran(struck)
    assert struck >= 0.9 * len(chosen)  # some lines are passed only when two processes meet


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_a_kill_at_some_lines(kind: Kind, scenario: Scenario, evidence: Tally) -> None:
    """A sample of the lines, another one each day."""
    with running(kind) as host:
        install(host)
        found = scenario.strikes(host, KILLS)
        survive(host, scenario, random.Random(SEED).sample(found, SAMPLE), evidence)


@heavy
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_a_kill_at_every_line(kind: Kind, scenario: Scenario, evidence: Tally) -> None:
    """Each process of the supervisor is killed before each line, the first time that it comes there."""
    with running(kind) as host:
        install(host)
        survive(host, scenario, scenario.strikes(host, KILLS), evidence)
