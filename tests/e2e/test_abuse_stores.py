"""Job store and object store go away in mid-run: the job goes on on its host, is caught up, and is DONE only when all is verified."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from remote_trainer.model import Job, Phase
from remote_trainer.store.mongo import MongoStore
from tests.support.mongo import MongoServer
from tests.support.rig import PATIENCE_S, Rig, heavy, installation, wait_for
from tests.support.s3 import S3Server
from tests.support.sshd import SshdServer

_LOCKER = """\
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


async def _three(rig: Rig, kb: int) -> list[Job]:
    """Jobs whose second step runs until it may end."""
    given = [await rig.submit(gated=True, kb=kb) for _ in range(3)]
    for job in given:
        await rig.log_has(job, 1)
    return [await rig.phase(job, Phase.EXECUTING) for job in given]


async def _go_on(rig: Rig, given: Sequence[Job]) -> None:
    """See by the host's own record that steps go on, and that the first comes to its end."""
    before = {job.id: len(rig.recorded(job)) for job in given}
    await rig.let_end(given[0])
    for job in given:
        await asyncio.to_thread(wait_for, lambda job=job: len(rig.recorded(job)) > before[job.id], "another line")
    await asyncio.to_thread(wait_for, lambda: "final/result.bin" in rig.sums(given[0]), "the end of a step")


@pytest.mark.fault("store-down")
async def test_a_locked_sqlite_file(own_sshd: SshdServer, tmp_path: Path) -> None:
    """Another process holds the embedded store for longer than anybody waits: the worker lives on and nothing is lost."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        worker = rig.worker()
        given = await _three(rig, kb=500)
        path = rig.app.settings.store_url.removeprefix("sqlite:///")
        locker = subprocess.Popen([sys.executable, "-c", _LOCKER, path, "15"], stdout=subprocess.PIPE)
        assert locker.stdout is not None
        assert await asyncio.to_thread(locker.stdout.readline) == b"locked\n"
        locker.stdout.close()
        await _go_on(rig, given)
        await asyncio.to_thread(locker.wait, PATIENCE_S)
        await rig.let_end(*given)
        for job in given:
            await rig.check(await rig.ended(job))
        assert worker.process.poll() is None


@pytest.mark.fault("store-down")
@heavy
async def test_a_store_that_is_locked_at_the_start(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A worker that finds the embedded store locked waits for it."""
    async with installation(tmp_path / "rig", own_sshd) as rig:
        job = await rig.submit()
        path = rig.app.settings.store_url.removeprefix("sqlite:///")
        locker = subprocess.Popen([sys.executable, "-c", _LOCKER, path, "13"], stdout=subprocess.PIPE)
        assert locker.stdout is not None
        assert await asyncio.to_thread(locker.stdout.readline) == b"locked\n"
        locker.stdout.close()
        rig.worker()
        await asyncio.to_thread(locker.wait, PATIENCE_S)
        await rig.check(await rig.ended(job))


@pytest.mark.fault("store-down")
async def test_a_mongo_server_that_is_killed(own_sshd: SshdServer, own_mongo: MongoServer, tmp_path: Path) -> None:
    """The database server dies and comes back while steps run and end: the worker waits, catches up, and nothing is lost or doubled."""
    url = own_mongo.uri.replace("/?", "/abuse?")
    async with installation(tmp_path / "rig", own_sshd, store=url) as rig:
        worker = rig.worker()
        given = await _three(rig, kb=200)
        own_mongo.kill()
        await _go_on(rig, given)
        await asyncio.sleep(6)  # longer than the lease of 3 s
        await asyncio.to_thread(own_mongo.start)
        await rig.let_end(*given)
        for job in given:
            await rig.check(await rig.ended(job))
        assert worker.process.poll() is None


@pytest.mark.fault("store-down")
async def test_a_mongo_server_that_is_down_at_the_start(own_sshd: SshdServer, own_mongo: MongoServer, tmp_path: Path) -> None:
    """A worker that finds no database server waits for it and says so."""
    url = own_mongo.uri.replace("/?", "/abuse?")
    async with installation(tmp_path / "rig", own_sshd, store=url) as rig:
        job = await rig.submit()
        own_mongo.kill()
        worker = rig.worker()
        await asyncio.to_thread(wait_for, lambda: "store_unavailable" in worker.log, "the worker's complaint")
        own_mongo.start()
        await rig.check(await rig.ended(job))


@pytest.mark.fault("objects-down")
async def test_an_object_store_that_is_down(own_sshd: SshdServer, start_s3: Callable[[str], S3Server], tmp_path: Path) -> None:
    """Artifacts wait here while the object store is away; the job is DONE only once they are verified there."""
    server = start_s3("juicefs")
    async with installation(tmp_path / "rig", own_sshd, collect_interval_s=1, **server.new_bucket().settings) as rig:
        rig.worker()
        job = await rig.submit(gated=True, kb=3000)
        await rig.log_has(job, 1)
        server.stop()
        await rig.let_end(job)
        waiting = await rig.until(job, lambda seen: seen.phase is Phase.FETCHING and seen.note)
        assert waiting.note
        spool = rig.app.settings.state_dir / "spool"

        def kept() -> bool:
            return 3000 * 1024 in {path.stat().st_size for path in spool.rglob("*") if path.is_file()}

        await asyncio.to_thread(wait_for, kept, "the artifact to be kept here meanwhile")
        assert (await rig.app.store.get(job.id)).phase is Phase.FETCHING
        server.start()
        await rig.check(await rig.ended(job))
        assert [path for path in spool.rglob("*") if path.is_file()] == []


@pytest.mark.fault("objects-down")
async def test_an_object_folder_that_cannot_be_written(own_sshd: SshdServer, tmp_path: Path) -> None:
    """A folder of objects that is not there for a while is waited for, and the note says which."""
    async with installation(tmp_path / "rig", own_sshd, collect_interval_s=1) as rig:
        rig.worker()
        objects = Path(rig.app.settings.objects_url)
        job = await rig.submit(gated=True)
        await rig.log_has(job, 1)
        aside = objects.with_name("aside")
        if objects.exists():
            objects.rename(aside)
        objects.write_text("in the way")
        await rig.let_end(job)
        waiting = await rig.until(job, lambda seen: seen.phase is Phase.FETCHING and seen.note)
        assert str(objects) in waiting.note
        objects.unlink()
        if aside.exists():
            aside.rename(objects)
        await rig.check(await rig.ended(job))


# The client leaves sockets of connections behind that were cancelled while they were opened.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_who_gives_up_is_let_go(mongo_uri: str) -> None:
    """However short somebody reads or watches the shared store before he gives up: he is let go, and the store closes."""
    store = MongoStore(mongo_uri.replace("/?", "/abuse-giving-up?"))
    await store.migrate()

    async def read() -> None:
        while True:
            await store.holders()

    async def watch() -> None:
        async with contextlib.aclosing(store.watch()) as wakes:
            async for _ in wakes:
                await asyncio.sleep(0)

    for number in range(60):
        tasks = [asyncio.create_task(read()), asyncio.create_task(watch())]
        await asyncio.sleep(number / 10_000)
        for task in tasks:
            task.cancel()
        _, still = await asyncio.wait(tasks, timeout=PATIENCE_S)
        assert not still
    async with asyncio.timeout(PATIENCE_S):
        await store.close()
