"""Running a worker: in this process, or as a background process that an embedded store gets by itself.

With the embedded store nobody has installed a service, so submitting starts a worker in the background; it ends when there is nothing left
to do. A file lock keeps it to one: the worker holds it as long as it lives, so the kernel frees it whatever happens to the worker.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from remote_trainer import log, plugins
from remote_trainer.config import Settings
from remote_trainer.errors import StoreUnavailable
from remote_trainer.policy import backoff_s
from remote_trainer.service.app import App
from remote_trainer.worker.audit import Audit
from remote_trainer.worker.loop import Worker
from remote_trainer.worker.notify import notify
from remote_trainer.worker.reaper import Reaper

_log = log.get()

#: How long a background worker stays when it has nothing to do, seconds.
IDLE_S = 300.0


async def serve(settings: Settings, *, until_idle_s: float | None = None, max_jobs: int | None = None) -> None:
    """Open the installation and work; a job store that is down is waited for, as a service may start before its database."""
    for failures in itertools.count(1):
        try:
            async with App(settings) as app:
                await run_worker(app, until_idle_s=until_idle_s, max_jobs=max_jobs)
                return
        except StoreUnavailable as error:
            _log.warning("training.worker", action="store_unavailable", failures=failures, error=str(error))
        notify("STATUS=waiting for the job store", "EXTEND_TIMEOUT_USEC=60000000")
        await asyncio.sleep(backoff_s(failures, base_s=0.5, max_s=10.0))


async def run_worker(app: App, *, until_idle_s: float | None = None, max_jobs: int | None = None) -> None:
    """Work until SIGTERM or SIGINT (pm2 sends that one), or until idle for so long. Running trainings go on."""
    # A thousand jobs are a million objects that stay: looking through them again and again costs a quarter of our CPU.
    gc.set_threshold(20_000, 20, 20)
    if until_idle_s is None:
        plugins.load_drivers()  # a service has the time; the worker that a waiting user has just started imports what it needs
    settings = app.settings
    shop = await app.shop()
    worker = Worker(
        shop, lease_s=settings.lease_s, max_jobs=max_jobs or settings.max_jobs, reaper=Reaper(shop), audit=Audit(shop)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    lock = _lock(_lock_path(app)) if until_idle_s is not None else None
    if until_idle_s is not None and lock is None:
        return  # another background worker is there already
    try:
        await worker.run(until_idle_s=until_idle_s)
    finally:
        if lock is not None:
            lock.close()


def ensure_worker(app: App) -> bool:
    """Start a background worker for the embedded store unless one is there. Returns whether one was started.

    A MongoDB store is served by workers that somebody runs as a service; nothing is started for it.
    """
    if not app.settings.store_url.startswith("sqlite"):
        return False
    lock = _lock(_lock_path(app))
    if lock is None:
        return False
    lock.close()
    path = app.settings.state_dir / "worker.log"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path, "ab", opener=_private) as output:
        subprocess.Popen(
            [sys.executable, "-m", "remote_trainer", "worker", "--until-idle", f"{IDLE_S:g}"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for it
            close_fds=True,
        )
    return True


def unserved(app: App) -> str:
    """Return what to tell somebody whose job no worker has taken for a while."""
    if app.settings.store_url.startswith("sqlite"):
        return f"no worker has taken the job yet; the background worker's log is {app.settings.state_dir / 'worker.log'}"
    return "no worker has taken the job yet: one must run against this store (remote-trainer worker), or all of them are busy"


def _lock_path(app: App) -> Path:
    return app.settings.state_dir / "worker.lock"


def _lock(path: Path) -> IO[bytes] | None:
    """Return the held lock, or None if somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = open(path, "ab", opener=_private)  # noqa: SIM115 - held as long as the worker lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
