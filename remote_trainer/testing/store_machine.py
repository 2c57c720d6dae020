"""Random stories played against a store and against the simplest model of it; they must agree at every step.

Rules for editing: the model is dictionaries and says what is promised, never how; time does not pass in it (leases are long, and
``evict`` makes them run out).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal

import hypothesis
from hypothesis import strategies as st

from remote_trainer.errors import Conflict, InvariantBroken, NotFound, Overdrawn
from remote_trainer.model import Entry, EntryKind, JobId, Phase, Token
from remote_trainer.ports import Change, JobQuery, Store
from remote_trainer.store.open import open_store
from remote_trainer.testing.store_peer import make_job, one_write

JOBS = tuple(JobId(f"job{number}") for number in range(3))
HOLDERS = ("a", "b")
DRAWN = 2  # by each job, where there is an account

_jobs = st.sampled_from(JOBS)
_holders = st.sampled_from(HOLDERS)
_tokens = st.integers(1, 4)
ACTS = st.one_of(
    st.tuples(st.just("submit"), _jobs, st.integers(0, 2)),
    st.tuples(st.just("claim"), _holders, st.integers(1, 3)),
    st.tuples(st.just("renew"), _holders, st.dictionaries(_jobs, _tokens)),
    st.tuples(st.just("release"), st.dictionaries(_jobs, _tokens), st.none()),
    st.tuples(st.just("evict"), _holders, st.none()),
    st.tuples(st.just("cancel"), _jobs, st.none()),
    st.tuples(
        st.just("save"), st.lists(st.tuples(_jobs, _tokens, st.sampled_from((False, False, False, True))), max_size=4), st.none()
    ),
    st.tuples(st.just("finish"), _jobs, _tokens),
    st.tuples(st.just("grant"), st.integers(0, 2), st.integers(-1, 3)),
)


@dataclass
class Known:
    """What the model knows of a job."""

    priority: int
    order: int
    token: int = 0
    holder: str | None = None
    running: bool = False
    finished: bool = False
    cancelling: bool = False
    writes: int = 0


@dataclass
class Model:
    """A store without time, durability or contention."""

    jobs: dict[JobId, Known] = field(default_factory=dict)
    account: dict[str, int] = field(default_factory=dict)  # entry → amount

    def submit(self, job_id: JobId, priority: int) -> object:
        """Insert, or say Conflict or Overdrawn; where there is an account, a job draws two on it."""
        if job_id in self.jobs:
            return Conflict
        if self.account:
            if sum(self.account.values()) < DRAWN:
                return Overdrawn
            self.account[f"reserve/{job_id}"] = -DRAWN
        self.jobs[job_id] = Known(priority, JOBS.index(job_id))
        return None

    def claim(self, holder: str, limit: int) -> object:
        """Return (job, token) by priority, then age."""
        free = [(known, job_id) for job_id, known in self.jobs.items() if not known.finished and not known.running]
        free.sort(key=lambda each: (-each[0].priority, each[0].order))
        for known, _ in free[:limit]:
            known.token, known.holder, known.running = known.token + 1, holder, True
        return [(job_id, known.token) for known, job_id in free[:limit]]

    def renew(self, holder: str, leases: dict[JobId, int]) -> object:
        """Return (held, cancelling)."""
        held = {job_id for job_id, token in leases.items() if self._owns(job_id, token) and self.jobs[job_id].holder == holder}
        for job_id in held:
            self.jobs[job_id].running = True
        return held, {job_id for job_id in held if self.jobs[job_id].cancelling}

    def release(self, leases: dict[JobId, int], _: None) -> object:
        """Free what is owned."""
        for job_id, token in leases.items():
            if self._owns(job_id, token):
                self.jobs[job_id].holder, self.jobs[job_id].running = None, False
        return None

    def evict(self, holder: str, _: None) -> object:
        """Return how many leases ran."""
        found = [known for known in self.jobs.values() if known.holder == holder and known.running]
        for known in found:
            known.running = False
        return len(found)

    def cancel(self, job_id: JobId, _: None) -> object:
        """Note the wish, or say why not."""
        if job_id not in self.jobs:
            return NotFound
        if self.jobs[job_id].finished:
            return Conflict
        self.jobs[job_id].cancelling = True
        return None

    def save(self, writes: list[tuple[JobId, int, bool]], _: None) -> object:
        """Return the stale ones; a gap in any log writes nothing at all."""
        before = {job_id: known.writes for job_id, known in self.jobs.items()}
        stale = set()
        for job_id, token, gap in writes:
            if not self._owns(job_id, token):
                stale.add(job_id)
            elif gap:
                for each, count in before.items():
                    self.jobs[each].writes = count
                return InvariantBroken
            else:
                self.jobs[job_id].writes += 1
        return stale

    def finish(self, job_id: JobId, token: int) -> object:
        """End the job, or return it as stale."""
        if not self._owns(job_id, token):
            return {job_id}
        self.jobs[job_id].finished = True
        self.account.setdefault(f"settle/{job_id}", 1)
        return set()

    def grant(self, number: int, amount: int) -> object:
        """Post an entry, unless it is there."""
        self.account.setdefault(f"grant/{number}", amount)
        return None

    def _owns(self, job_id: JobId, token: int) -> bool:
        return job_id in self.jobs and self.jobs[job_id].token == token and self.jobs[job_id].holder is not None


class Player:
    """Does to a store what the model is told, and returns what it said in the model's words."""

    def __init__(self, store: Store, model: Model) -> None:
        self._store = store
        self._model = model

    async def submit(self, job_id: JobId, priority: int) -> object:
        drawn = [_entry(f"reserve/{job_id}", -DRAWN)] if await self._store.ledger.balance("default") is not None else []
        await self._store.submit(make_job(job_id, priority=priority, age=9 - JOBS.index(job_id)), drawn)
        return None

    async def claim(self, holder: str, limit: int) -> object:
        leases = await self._store.claim(holder, lease_s=1000, limit=limit)
        return [(lease.job.id, lease.token) for lease in leases]

    async def renew(self, holder: str, leases: dict[JobId, int]) -> object:
        renewal = await self._store.renew(holder, _tokens_of(leases), lease_s=1000)
        return set(renewal.held), set(renewal.cancelling)

    async def release(self, leases: dict[JobId, int], _: None) -> object:
        await self._store.release(_tokens_of(leases))
        return None

    async def evict(self, holder: str, _: None) -> object:
        return await self._store.evict(holder)

    async def cancel(self, job_id: JobId, _: None) -> object:
        await self._store.request_cancel(job_id)
        return None

    async def save(self, writes: list[tuple[JobId, int, bool]], _: None) -> object:
        changes = []
        ahead = dict.fromkeys(JOBS, 0)
        for job_id, token, gap in writes:
            known = self._model.jobs.get(job_id, Known(0, 0))
            changes.append(one_write(job_id, Token(token), known.writes + ahead[job_id] + gap))
            ahead[job_id] += token == known.token and known.holder is not None
        return set(await self._store.save(changes))

    async def finish(self, job_id: JobId, token: int) -> object:
        job = replace(make_job(job_id), phase=Phase.DONE)
        change = Change(job_id=job_id, token=Token(token), job=job, entries=(_entry(f"settle/{job_id}", 1),))
        return set(await self._store.save([change]))

    async def grant(self, number: int, amount: int) -> object:
        await self._store.ledger.post([_entry(f"grant/{number}", amount)])
        return None

    async def same(self) -> None:
        """Compare everything that can be read."""
        known = self._model.jobs
        assert {job.id for job in (await self._store.find(JobQuery())).jobs} == known.keys()
        for job_id, each in known.items():
            job = await self._store.get(job_id)
            assert (job.phase.terminal, job.cancel_requested_at is not None) == (each.finished, each.cancelling)
            assert [event.message for event in await self._store.events(job_id)] == [str(number) for number in range(each.writes)]
            assert sum((await self._store.log_streams(job_id)).values()) == each.writes * 8
        running = {each.holder for each in known.values() if each.running}
        assert set(await self._store.holders()) == running
        account = self._model.account
        assert {entry.id: entry.amount for entry in await self._store.ledger.entries("default")} == account
        assert await self._store.ledger.balance("default") == (sum(account.values()) if account else None)


def _entry(name: str, amount: int) -> Entry:
    return Entry(id=name, tenant="default", kind=EntryKind.GRANT, amount=Decimal(amount), at=make_job("any").created_at)


def _tokens_of(leases: dict[JobId, int]) -> dict[JobId, Token]:
    return {job_id: Token(token) for job_id, token in leases.items()}


async def play(url: str, story: list[tuple[str, object, object]]) -> None:
    """Play one story on an empty store."""
    store, model = open_store(url), Model()
    player = Player(store, model)
    try:
        await store.migrate()
        for act, first, second in story:
            try:
                said = await getattr(player, act)(first, second)
            except (Conflict, InvariantBroken, NotFound, Overdrawn) as error:
                said = type(error)
            assert said == getattr(model, act)(first, second), (act, first, second)
        await player.same()
    finally:
        await store.close()


def check(new_url: Callable[[], str], *, stories: int) -> None:
    """Play random stories; hypothesis shortens one that fails."""

    @hypothesis.settings(max_examples=stories, deadline=None, database=None, derandomize=True)
    @hypothesis.given(st.lists(ACTS, max_size=25))
    def one(story: list[tuple[str, object, object]]) -> None:
        asyncio.run(play(new_url(), story))

    one()
