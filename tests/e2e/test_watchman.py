"""A rented machine that everybody has left ends its own rent: a real worker, its driver's farewell, and the machine's own key."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_trainer.host.client import SupervisedHost
from remote_trainer.host.watchman import Orders
from remote_trainer.policy import Policy
from remote_trainer.ports import SelfEnding
from remote_trainer.service.submit import Order, submit
from remote_trainer.testing.vast.instances import Timings
from tests.support.rig import installation, wait_for
from tests.support.vasthere import OPTIONS, nowhere, vast_here

LINES = 8
AT_ONCE = Timings(scheduled_s=0.01, created_s=0.01, loading_s=0.01, reboot_s=0.1, destroy_s=0.01)
pytestmark = [pytest.mark.sshd, pytest.mark.fault("worker-killed")]


@pytest.mark.timeout(900)
async def test_a_machine_whose_worker_is_dead_for_ever_is_gone_soon_after_its_work(tmp_path: Path) -> None:
    """The worker set a watchman with its own patience; with a shorter one the machine outlives the step, and nothing else."""
    with vast_here(tmp_path, offers=1, timings=AT_ONCE) as sim:
        async with installation(tmp_path / "rig", nowhere(tmp_path)) as rig:
            options = {**OPTIONS, "visibility_lag_s": 0}
            settings = [f"record={rig.record}", f"lines={LINES}", "delay_s=0.2"]
            job = await submit(rig.app, Order(tool="abused@1", driver="vastai", driver_options=options, settings=settings))
            worker = rig.worker()
            running = await rig.until(job, lambda seen: len(getattr(seen.attempt, "steps", ())) == 2)
            await rig.log_has(job, 10)
            worker.kill()
            attempt = running.attempt
            assert attempt is not None and attempt.instance is not None
            (instance,) = sim.live.values()
            home = tmp_path / "instances" / str(instance.id) / "home/.remote-trainer"
            policy = Policy()
            told = f"silence {policy.orphan_after_s:.0f}, hold {policy.orphan_hold_s:.0f}, "
            assert f"watching over {attempt.label}: {told}" in (home / "watchman.log").read_text()
            driver = rig.app.driver("vastai", OPTIONS)
            assert isinstance(driver, SelfEnding)
            host = SupervisedHost(await driver.connect(attempt.instance))
            await host.keep_watch(attempt.label, Orders(farewell=driver.farewell, silence_s=1, hold_s=1))
            await driver.close()
            wait_for(lambda: not sim.live, "the machine to be gone")
            assert rig.recorded(job).count(b"\n") == LINES
