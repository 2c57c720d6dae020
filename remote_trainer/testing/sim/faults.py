"""What may go wrong in a simulated life, and how often; the profiles that `make sim` lives.

Rules for editing: probabilities are per event, ``*_s`` are seconds. Everything here ends at ``quiet_s``: from then on every job must
get to its end. A new kind of fault needs a line in KINDS and a place that calls ``World.deal`` with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from remote_trainer.testing.vast.faults import MENU

#: Every kind of fault that can be dealt, in words.
KINDS: dict[str, str] = {
    "worker-dies": "a worker is killed between two effects: before a message, or after it and before the reply",
    "worker-pauses": "a worker stands still for up to 40 s, at any await",
    "worker-drains": "a worker is told to stop and gives its jobs back",
    "workers-gone": "every worker dies, and none comes for hours",
    "lease-expires": "a lease runs out while its worker sleeps, and another worker takes the job",
    "clock-skew": "a worker's clock goes wrong by up to an hour",
    "clock-jump": "a worker's clock jumps by up to an hour",
    "older-worker": "a worker of the previous version works beside newer ones",
    "message-lost": "a request, or its reply, never arrives",
    "store-outage": "the store cannot be reached",
    "provider-refuses": "the provider answers with an error",
    "offer-gone": "somebody else has taken the offer",
    "no-offers": "there is nothing for rent at the moment",
    "create-waits": "a request to rent waits its turn, at times until it may not be sent any more",
    "create-late": "a request to rent takes effect up to a minute and a half later, also of a worker that is dead by then",
    "listing-late": "a listing takes up to half a minute",
    "listing-stale": "a listing shows how things were some seconds ago",
    "listing-partial": "the provider shows only a part of its instances",
    "unlisted": "an instance that only the provider's records know",
    "records-stale": "the provider's records show how things were some seconds ago",
    "prices-rise": "others bid more for a spot machine: it is lost unless we do, too",
    "boot-breaks": "an instance never becomes ready",
    "preempted": "the provider stops an instance",
    "vanished": "an instance is gone without a word",
    "destroy-forgotten": "the provider says yes to a destroy and forgets it",
    "destroy-slow": "an instance ends long after its destroy",
    "resurrected": "an instance that was gone is there again, minutes later, and costs money",
    "ssh-flap": "the connection to a host breaks while a log is followed or a file fetched",
    "host-silent": "a host cannot be reached for minutes",
    "host-cut-off": "a host cannot be reached for hours, and its job still runs",
    "host-dead": "a host never answers again",
    "host-reboots": "a host reboots",
    "host-wiped": "a host comes back with an empty disk",
    "transfer-damaged": "a bit of a file is flipped on its way from or to a host",
    "objects-outage": "the object store cannot be reached",
    "object-truncated": "an upload is kept short",
    "object-damaged": "a bit of an object is flipped on its way, or while it is stored",
    "object-rots": "a bit of an object of an earlier attempt is flipped at rest",
    "step-fails": "the user's program exits non-zero",
    "cancelled": "the user cancels the job, at any time",
    "create-held-up": "a worker stands still between its last look at the clock and its request to rent",
    "create-left": "the machine of such a request is left, in a world without a reaper",
    **{f"vastai:{name}": text for name, text in MENU.items()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How much goes wrong."""

    quiet_s: float = 70.0  # no new fault begins after that
    every_s: float = 5.0  # mean time between two blows of ``weights``
    deaths: float = 0.006  # of a worker at a message that changes something; a tenth of it at any other
    pauses: float = 0.006
    loss: float = 0.03  # of a request, and of a reply
    refusals: float = 0.08  # of the provider's answers: it raises instead
    broken_boots: float = 0.05
    stubborn: float = 0.25  # destroy requests that are accepted and forgotten
    slow_destroy: float = 0.2
    slow_listing: float = 0.15
    stale_listing: float = 0.4
    partial_listing: float = 0.05
    lag_s: float = 4.0  # a listing may be that old
    empty: float = 0.0  # looks at the market that find nothing
    waits: float = 0.0  # requests to rent that wait their turn
    unlisted: float = 0.0  # instances
    late_creates: float = 0.0  # requests to rent that arrive whenever
    resurrections: float = 0.0
    wrong_clocks: float = 0.2  # workers
    dead_hosts: float = 0.03  # lives in which a machine falls silent for good
    exodus: float = 0.015  # lives in which all workers die, for hours
    cut_off: float = 0.005  # silences that last hours
    exits: float = 0.1  # step runs that end non-zero
    damage: float = 0.03  # files on their way, and objects
    cancels: float = 0.15  # jobs
    menu: float = 0.0  # requests to Vast.ai that meet something of its menu
    #: How often each kind of blow is dealt, relative to the others.
    weights: tuple[tuple[str, float], ...] = (
        ("worker-dies", 2.0),
        ("worker-pauses", 3.0),
        ("worker-drains", 1.0),
        ("clock-jump", 0.7),
        ("store-outage", 1.0),
        ("objects-outage", 1.0),
        ("object-rots", 0.7),
        ("host-silent", 3.0),
        ("host-reboots", 0.4),
        ("host-wiped", 0.3),
        ("vanished", 0.4),
        ("preempted", 0.4),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A world to live in."""

    name: str
    about: str
    faults: Faults
    share: int  # of the lives
    jobs: tuple[int, ...] = (1, 1, 1, 1, 2, 2, 3)  # how many, each as likely as the others
    borrowed: bool = False  # one machine that is lent to us, for all jobs
    nets: bool = False  # the reaper and the dead-man's switch are there
    versions: bool = False  # workers of the previous version are there too
    market: bool = False  # jobs with several places, races and spot machines; the provider keeps records
    vastai: bool = False  # machines are rented at the simulated Vast.ai, by its real driver


NOTHING = Faults(
    deaths=0,
    pauses=0,
    loss=0,
    refusals=0,
    broken_boots=0,
    stubborn=0,
    slow_destroy=0,
    slow_listing=0,
    stale_listing=0,
    partial_listing=0,
    wrong_clocks=0,
    dead_hosts=0,
    exodus=0,
    cut_off=0,
    exits=0,
    damage=0,
    cancels=0,
    weights=(),
)
#: No net: no request to rent arrives late, so nothing may ever be left behind, and nobody looks after it.
BARE = Faults()
#: Everything: what cannot be survived without the nets, too.
EVERYTHING = replace(BARE, late_creates=0.1, resurrections=0.1, exodus=0.03)

#: Vast.ai has its own ways to go wrong: ``vastworld``.
AT_VAST = replace(BARE, menu=0.06, weights=(*BARE.weights, ("vastai-run", 2.0), ("vastai-credit", 0.2), ("vastai-revoked", 0.3)))
#: What comes with a choice: machines that are taken away, requests that wait, and instances that no listing shows.
CHOOSY = replace(BARE, empty=0.1, waits=0.2, unlisted=0.05, weights=(*BARE.weights, ("prices-rise", 2.0), ("preempted", 0.6)))

PROFILES: dict[str, Profile] = {
    each.name: each
    for each in (
        Profile(name="calm", about="nothing goes wrong", faults=NOTHING, share=1),
        Profile(name="bare", about="rented machines, no reaper and no dead-man's switch", faults=BARE, share=5),
        Profile(name="nets", about="everything, with reaper and dead-man's switch", faults=EVERYTHING, share=5, nets=True),
        Profile(name="borrowed", about="one borrowed machine for all jobs", faults=BARE, share=3, borrowed=True),
        Profile(name="market", about="several places, races and spot machines; no reaper", faults=CHOOSY, share=3, market=True),
        Profile(
            name="market-nets",
            about="the same with requests that arrive late, and the reaper",
            faults=replace(CHOOSY, unlisted=0, late_creates=0.1, resurrections=0.1),
            share=1,
            market=True,
            nets=True,
        ),
        Profile(name="versions", about="two versions of the worker side by side", faults=BARE, share=2, versions=True),
        Profile(
            name="vastai", about="rented at the simulated Vast.ai by its driver, no reaper", faults=AT_VAST, share=0, vastai=True
        ),
        Profile(
            name="vastai-nets",
            about="the same with the reaper, and with lives in which all workers are gone for hours",
            faults=replace(AT_VAST, exodus=0.03),
            share=0,
            vastai=True,
            nets=True,
        ),
        Profile(
            name="vastai-calm", about="rented at the simulated Vast.ai, nothing goes wrong", faults=NOTHING, share=0, vastai=True
        ),
    )
}


def profile_of(seed: int) -> Profile:
    """Return the profile that a seed lives in when none is named."""
    shares = [profile for profile in PROFILES.values() for _ in range(profile.share)]
    return shares[seed % len(shares)]
