"""A world in which machines are rented at the simulated Vast.ai, with everything of its menu that has gone wrong there.

Rules for editing: a fault of the menu is armed right before the request that meets it, for our instances only, and never once the world
is quiet. What cannot be played without real machines is named in ``UNPLAYED``, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from remote_trainer.model import Job
from remote_trainer.testing.sim.blows import Blows
from remote_trainer.testing.sim.crew import Crew
from remote_trainer.testing.sim.faults import Profile
from remote_trainer.testing.sim.loop import VirtualLoop
from remote_trainer.testing.sim.promises import job_of
from remote_trainer.testing.sim.vastservice import OURS, Service
from remote_trainer.testing.sim.world import World
from remote_trainer.testing.vast.faults import MENU

if TYPE_CHECKING:
    from remote_trainer.testing.vast.routes import Request

_CREDIT = Decimal(25)
_DEAREST = Decimal("0.1")  # US dollars an hour, of any offer with its disk
_END_H, _NETS_H = Decimal(1), Decimal(4)
#: Faults of the menu by the request that meets them, as often as each other.
_CREATE = (*(name for name in MENU if name.startswith(("create-", "boot-"))), "list-lag", "list-label-lag")
_LIST = ("list-410", "list-unsuccessful", "list-page-missing", "list-502", "list-empty")
_DESTROY = tuple(name for name in MENU if name.startswith("destroy-"))
_RUN = tuple(name for name in MENU if name.startswith("run-"))
#: Played with real hosts only: these machines have neither a disk that fills nor a GPU. And a job waits for tomorrow's searches for longer
#: than a life lasts.
UNPLAYED = frozenset({"search-quota", "boot-small-disk", "boot-gpu-missing", "run-disk-full", "run-gpu-missing"})
#: How long an effect lasts where that is a matter of chance, seconds; None: for ever.
_SECONDS: Mapping[str, tuple[float | None, ...]] = {
    "create-late": (5.0, 130.0),
    "boot-refused": (None, 30.0),
    "boot-timeouts": (None, 30.0),
    "boot-late-banner": (20.0,),
    "boot-key-denied": (30.0, 120.0),
    "run-unknown": (30.0,),
    "run-offline": (40.0, 3600.0),  # for ever is "host-dead"
    "run-outbid": (None, 20.0),
    "list-empty": (3.0, 30.0, 120.0),
    "destroy-lingers": (20.0, 120.0),
    "destroy-late": (5.0, 40.0),
}


class VastWorld(World):
    """Everything that is true in one life at Vast.ai."""

    def __init__(self, seed: int, profile: Profile, loop: VirtualLoop, *, tell: bool = False) -> None:
        super().__init__(seed, profile, loop, tell=tell)
        loop.call_at(self.quiet_s, self._calm, context=loop.outside)

    def make_provider(self) -> Any:
        return Service(self)

    @property
    def service(self) -> Service:
        """The provider, as what it is."""
        return cast(Service, self.provider)

    def _calm(self) -> None:
        """Everything that waits to go wrong does not, from now on."""
        self.service.faults.disarm()
        self.service.account.credit = _CREDIT
        self.service.account.searches_from = 0.0

    # -- what goes wrong

    def meet(self, request: Request) -> None:
        """Let a request meet something that has gone wrong."""
        names = self._meets(request)
        if names and self.deal_quietly(self.faults.menu):
            self.arm(self.dice.choice([name for name in names if name not in UNPLAYED]))

    def _meets(self, request: Request) -> tuple[str, ...]:
        match request.method:
            case "PUT" if "/asks/" in request.path:
                return _CREATE
            case "GET" if request.path == "/api/v1/instances/":
                return _LIST
            case "DELETE" if "/instances/" in request.path:
                return _DESTROY
            case _:
                return ()

    def deal_quietly(self, probability: float) -> bool:
        """Does something go wrong now? What it is, is told by whoever asks."""
        return probability > 0 and not self.quiet and self.dice.random() < probability

    def arm(self, name: str, label: str = OURS) -> None:
        """Arm a fault for its next chance."""
        self.note(f"vastai:{name}", label)
        seconds = self.dice.choice(_SECONDS.get(name, (None,)))
        shape = self.dice.choice(("stopped", "exited", "loading")) if name == "run-outbid" else ""
        self.service.faults.arm(name, label="" if name.startswith(("list-", "search")) else label, seconds=seconds, shape=shape)

    # -- the end

    def check_end(self) -> None:
        """Nothing of ours is there, nothing of strangers' is touched, and no job has cost more than it may."""
        service = self.service
        service.go_on()
        for one in service.rented.values():
            if one.alive and one.late and not self.profile.nets:
                self.note("create-left", one.instance.label)
            elif one.alive:
                raise self.broken(f"instance {one.instance.id} ({one.instance.label}) is left")
        if missing := [number for number in service.strangers if service.live[number].ended_at is not None]:
            raise self.broken(f"instances of strangers are gone: {missing}")
        for row in self.store.rows.values():
            self._check_cost(row.job)

    def _check_cost(self, job: Job) -> None:
        """A cap may be passed by what the end takes; by what the last nets take where everybody was gone."""
        self.checked["costs"] += 1
        rented = [one for one in self.service.rented.values() if job_of(one.instance.label) == job.id]
        ours = [one.contract.meter.total for one in rented if self.profile.nets or not one.late]
        cost, beyond = sum(ours, Decimal(0)), _DEAREST * (_NETS_H if self.exodus_s else _END_H)
        if job.limits.max_cost and cost > job.limits.max_cost + beyond:
            raise self.broken(f"{job.id} has cost {cost:.4f} $, and may {job.limits.max_cost} $")


class VastBlows(Blows):
    """The blows of other worlds, and those of the menu that need no request."""

    def __init__(self, world: VastWorld, crew: Crew) -> None:
        super().__init__(world, crew)
        self._vast = world
        more: dict[str, Callable[[], None]] = {
            "vastai-run": self._run,
            "vastai-credit": self._no_credit,
            "vastai-revoked": self._revoked,
        }
        self._deal |= more

    def _run(self) -> None:
        if there := self._vast.service.alive():
            self._vast.arm(
                self._vast.dice.choice([name for name in _RUN if name not in UNPLAYED]),
                self._vast.dice.choice(there).instance.label,
            )
            self._vast.service.go_on()

    def _no_credit(self) -> None:
        self._vast.arm("account-no-credit")
        self._vast.service.go_on()
        self._after(self._vast.dice.uniform(5, 40), partial(setattr, self._vast.service.account, "credit", _CREDIT))

    def _revoked(self) -> None:
        self._vast.note("vastai:account-key-revoked")
        self._vast.service.faults.arm("account-key-revoked", for_s=self._vast.dice.uniform(2, 30))
