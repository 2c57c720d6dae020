"""Everything that has gone wrong at the provider, by name, and what of it is armed now.

    arm("create-dropped", times=1)                    # the next create
    arm("run-outbid", label="rt-x", after_s=30)       # instances whose label begins so, 30 s after they run
    arm("list-502", for_s=20)                         # every listing for 20 s

Rules for editing: a name says the request or the time of life first; the effect is where that request or life is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

MENU: Mapping[str, str] = {
    "create-dropped": "rents, then closes the connection without a reply",
    "create-late": "rents, and replies only after `seconds`",
    "create-504": "rents, and a gateway replies 504",
    "create-parked": "replies success:false with a new_contract: an instance that is stopped and bills its disk",
    "create-no-ask-400": "the offer is gone: 400",
    "create-no-ask-404": "the offer is gone: 404",
    "create-no-ask-410": "the offer is gone: 410",
    "create-conflict": "409, nothing rented",
    "create-500": "server_error, nothing rented",
    "create-429-text": "too frequent, as plain text",
    "create-429-json": "too frequent, as JSON",
    "create-no-credit": "insufficient_credit",
    "create-duplicate": "the offer stays open: a second request for it is accepted too",
    "list-empty": "200 with no instance at all, for `seconds` (3)",
    "list-410": "deprecated_endpoint",
    "list-unsuccessful": "200 with success:false",
    "list-lag": "a new instance is not listed for `seconds` (3)",
    "list-page-missing": "one page is left out: fewer rows than total_instances says",
    "list-502": "a gateway replies 502",
    "list-label-lag": "a new instance is not found by its label for `seconds` (3)",
    "boot-forever": "loading for ever, the message frozen",
    "boot-halted": "loading, meant to be stopped: the host is dead",
    "boot-pull-error": "loading, the message says that the image cannot be pulled",
    "boot-oci": "created, the message says that the container runtime failed",
    "boot-exited": "exited instead of running",
    "boot-offline": "offline instead of running",
    "boot-small-disk": "half the disk that was asked for",
    "boot-refused": "running, the SSH port refuses for `seconds` (for ever)",
    "boot-timeouts": "running, the SSH port does not answer for `seconds` (for ever)",
    "boot-late-banner": "running, the SSH port takes connections and says nothing for `seconds` (45)",
    "boot-key-denied": "running, no key is let in for `seconds` (120)",
    "boot-proxy-only": "no direct ports",
    "boot-ports-list": "ports are a list of numbers",
    "boot-no-ports-by-id": "ports are listed, but missing when asked for by id",
    "boot-gpu-missing": "running, the GPU cannot be used",
    "run-ssh-drop": "every open SSH connection breaks",
    "run-unknown": "unknown for `seconds` (60), then running again; its work goes on",
    "run-offline": "offline, cut off, for `seconds` (for ever); its work goes on",
    "run-outbid": "outbid for `seconds` (for ever), seen as `shape`: processes are killed, the disk is kept and billed",
    "run-reboot": "the host reboots: processes are killed, onstart runs again, /tmp is lost",
    "run-keys-wiped": "authorized_keys is emptied",
    "run-disk-full": "nothing more can be written",
    "run-gpu-missing": "the GPU falls off",
    "run-moved": "reboots and comes back with another port",
    "destroy-429": "too frequent; nothing destroyed",
    "destroy-500": "server_error; nothing destroyed",
    "destroy-dropped": "destroys, then closes the connection without a reply",
    "destroy-late": "destroys, and replies only after `seconds` (40)",
    "destroy-no-such": "destroys, and replies 404 no_such_instance",
    "destroy-bad-key": "404 Invalid user key; nothing destroyed",
    "destroy-lingers": "success, the row remains for `seconds` (120)",
    "account-key-revoked": "404 Invalid user key, for every request",
    "account-no-credit": "the credit is used up: everything is stopped",
    "search-quota": "search_quota_exceeded until midnight, UTC",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """One fault that waits for its chance."""

    name: str
    times: int | None = 1  # None: as often as it finds a chance
    until: float | None = None  # on the simulated clock
    label: str = ""  # only instances whose label begins so
    offer: int | None = None
    seconds: float | None = None  # how long the effect lasts
    after_s: float = 0.0  # run-…: so long after it began to run
    shape: str = ""  # run-outbid: how it looks, "stopped" (default), "exited" or "loading"

    def lasts(self, otherwise: float) -> float:
        """Return how long the effect lasts."""
        return otherwise if self.seconds is None else self.seconds


class Faults:
    """What is armed, and what has struck."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._armed: list[Armed] = []
        self.struck: list[str] = []

    def arm(self, name: str, *, times: int | None = None, for_s: float | None = None, **details: Any) -> None:
        """Arm a fault `times` times, or for so many simulated seconds; once if neither is said."""
        if name not in MENU:
            raise ValueError(f"no such fault: {name!r}; there are: {', '.join(MENU)}")
        until = None if for_s is None else self._now() + for_s
        often = 1 if times is None and for_s is None else times
        self._armed.append(Armed(name=name, times=often, until=until, **details))

    def disarm(self) -> None:
        """Take back what has not struck yet."""
        self._armed.clear()

    def armed(self, begins: str = "") -> list[Armed]:
        """Return what waits, by the beginning of its name."""
        now = self._now()
        self._armed = [each for each in self._armed if each.until is None or each.until > now]
        return [each for each in self._armed if each.name.startswith(begins)]

    def strike(self, begins: str, *, label: str = "", offer: int | None = None, running_s: float = 0.0) -> Armed | None:
        """Return the first fault that has its chance here, and use it up by one."""
        for each in self.armed(begins):
            fits = label.startswith(each.label) and each.offer in (None, offer) and running_s >= each.after_s
            if fits and self.use(each):
                return each
        return None

    def use(self, each: Armed) -> bool:
        """Use an armed fault up by one; False if it is not armed any more."""
        if each not in self._armed:
            return False
        self.struck.append(each.name)
        place = self._armed.index(each)
        if each.times is None:
            return True
        if each.times <= 1:
            del self._armed[place]
        else:
            self._armed[place] = replace(each, times=each.times - 1)
        return True

    def documents(self) -> dict[str, Any]:
        """Return the menu and the state for a reader outside."""
        return {"menu": dict(MENU), "armed": [asdict(each) for each in self.armed()], "struck": self.struck}
