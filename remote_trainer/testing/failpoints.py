"""Lets the real program die, by ``kill -9`` of itself, before, in the middle of and after each thing that it does to the world.

    RT_FAILPOINTS=effect.Create:after,objects.put:during RT_FAILPOINTS_RECORD=deaths python -m remote_trainer.testing.failpoints worker

runs ``remote-trainer worker`` (or ``run-training``, or any other command). The process dies the first time that it comes to an armed point
and is started again, and none dies twice at the same one. It lives on when none is left.

A point is ``PLACE:before``, ``PLACE:during`` or ``PLACE:after``; ``#3`` behind it waits for the third time in one life. Places are the
verbs of the ports that change something, every effect, every kind of save by what it saves, and a few functions with interesting insides.

The product knows nothing of this (an import contract says so): its functions are wrapped from here, in the process that was asked to die.

Rules for editing: a verb of a port is in ``_ACTS`` or in ``_LOOKS``, a test compares; every place is reached by the scenarios of
tests/e2e/test_crash_points.py, which count. What a place is called says what is done, not which function does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import inspect
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn, get_args

from remote_trainer import plugins, ports
from remote_trainer.effects import Effect
from remote_trainer.errors import ConfigError
from remote_trainer.lifecycle.rules import TRANSITIONS
from remote_trainer.ports import Change

PORTS: Mapping[str, type] = {
    "store": ports.Store,
    "driver": ports.Driver,
    "host": ports.Host,
    "follow": ports.Follow,
    "transport": ports.Transport,
    "objects": ports.Objects,
}

#: Verbs that change something over there or here, and two whose answers are acted upon at once: ``instances`` (what is not listed is given
#: up) and ``verify`` (the spooled copy goes).
_ACTS: Mapping[str, frozenset[str]] = {
    "store": frozenset({"migrate", "submit", "request_cancel", "claim", "renew", "release", "evict", "save"}),
    "driver": frozenset({"create", "instances", "destroy", "guard"}),
    "host": frozenset({"bootstrap", "start", "stop", "follow", "fetch", "clean"}),
    "follow": frozenset({"ack"}),
    "transport": frozenset({"push", "pull"}),
    "objects": frozenset({"put", "get", "verify", "delete"}),
}

#: Verbs that only look, let go, or carry another port's verb; and the one that no job uses, ``cancel``: ``stop`` takes the start away, too.
_LOOKS: Mapping[str, frozenset[str]] = {
    "store": frozenset(
        {
            "close",
            "deployment",
            "ledger",
            "get",
            "find",
            "holders",
            "events",
            "log_streams",
            "read_log",
            "metrics",
            "watch",
            "export",
        }
    ),
    "driver": frozenset({"offers", "connect", "check", "close"}),
    "host": frozenset({"transport", "status", "cancel", "digests", "outputs", "read"}),
    "follow": frozenset(),
    "transport": frozenset({"address", "host_key", "shares_files", "stall_s", "doubt", "run", "open", "close"}),
    "objects": frozenset({"head", "list", "presign", "check"}),
}

_IMPLEMENTATIONS: Mapping[str, tuple[str, ...]] = {
    "store": ("remote_trainer.store.sqlite:SqliteStore", "remote_trainer.store.mongo:MongoStore"),
    "host": ("remote_trainer.host.client:SupervisedHost",),
    "follow": ("remote_trainer.host.follow:LogFollow",),
    "transport": ("remote_trainer.transport.ssh:SshTransport", "remote_trainer.transport.command:CommandTransport"),
    "objects": ("remote_trainer.objects.local:LocalObjects", "remote_trainer.objects.s3:S3Objects"),
}

#: What happens inside a verb or an effect, between one change of the world and the next.
_INSIDES: Mapping[str, tuple[str, ...]] = {
    "cache.publish": ("remote_trainer.dataset.cache:Cache._publish",),
    "depot.begin": ("remote_trainer.host.depot:Depot.begin",),
    "depot.receive": ("remote_trainer.host.depot:Depot.receiving",),
    "depot.finish": ("remote_trainer.host.depot:Depot.finish",),
    "depot.place": ("remote_trainer.host.depot:Depot.place",),
    "ship.chunk": ("remote_trainer.worker.ship:_Transfer._send",),
    "collect.pull": ("remote_trainer.worker.collect:Collector._pull",),
    "collect.record": ("remote_trainer.worker.collect:Collector._record",),
    "collect.drop": ("remote_trainer.worker.collect:Collector._drop",),
    "collect.finish": ("remote_trainer.worker.collect:Collector._finish",),
    "collect.write": ("remote_trainer.worker.records:write",),
    "objects.rename": ("remote_trainer.objects.local:move", "remote_trainer.objects.s3:move"),
    "objects.note": ("remote_trainer.objects.local:LocalObjects._note",),
    "objects.part": ("remote_trainer.objects.s3:S3Objects._send",),
    "objects.parts": ("remote_trainer.objects.s3:S3Objects._send_parts",),
    "worker.drain": ("remote_trainer.worker.loop:Worker._drain",),
}

WHENS = ("before", "during", "after")

#: Verbs that wait for nothing unless the line is full: there is no middle of them to die in.
_AT_ONCE = frozenset({"follow.ack"})

_PERFORM = "remote_trainer.worker.perform:Performer.perform"

#: What is smaller here, so that little data gets to every point and little time passes between two: bytes between two acknowledgements, of
#: a part of an upload; seconds between two looks at what is to come or to go.
_SMALLER: Mapping[str, float] = {
    "remote_trainer.worker.follow:_ACK_EVERY": 1 << 19,
    "remote_trainer.objects.s3:PART": 5 << 20,
    "remote_trainer.lifecycle.asking:_LOOK_S": 1.0,
    "remote_trainer.lifecycle.returning:_LOOK_S": 1.0,
    "remote_trainer.lifecycle.rules:DOUBT_S": 1.0,
    "remote_trainer.lifecycle.machines:DOUBT_S": 1.0,
}

#: Patience that is shorter here, seconds: what is waited for comes at once or never, and after each death most waits begin anew.
_SOONER: Mapping[str, float] = {"lag_margin_s": 3.0, "gone_confirm_s": 2.0, "instance_poll_s": 2.0}

#: What a save may hold besides a move from one phase to another; ``document``: a job without news for its history.
_SAVED = ("step", "stop", "note", "document", "log", "metrics")


def verbs(port: str) -> frozenset[str]:
    """Return every verb of a port that is a place or, as ``_LOOKS`` says, is none."""
    return _ACTS[port] | _LOOKS[port]


def places() -> tuple[str, ...]:
    """Return every place where the program can be made to die."""
    acts = [f"{port}.{verb}" for port, known in _ACTS.items() for verb in known if (port, verb) != ("store", "save")]
    saves = [f"save.{before}-{after}" for before, after in TRANSITIONS] + [f"save.{kind}" for kind in _SAVED]
    effects = [f"effect.{kind.__name__}" for kind in get_args(Effect)]
    return tuple(sorted([*acts, *saves, *effects, *_INSIDES]))


def points() -> tuple[str, ...]:
    """Return every point: each place before, after and, where there is a middle, during."""
    return tuple(f"{place}:{when}" for place in places() for when in _whens(place))


def _whens(place: str) -> tuple[str, ...]:
    at_once = place in _AT_ONCE or (place in _INSIDES and not _lasts(_find(_INSIDES[place][0])[2]))
    return tuple(when for when in WHENS if not (at_once and when == "during"))


# ---------------------------------------------------------------------------------------------------------------- dying


class _Fate:
    """Which deaths are still to be died by this process and its successors. The record outlives them all."""

    def __init__(self) -> None:
        self._armed = frozenset(filter(None, os.environ.get("RT_FAILPOINTS", "").split(",")))
        self._path = Path(os.environ.get("RT_FAILPOINTS_RECORD", os.devnull))
        self._met: Counter[str] = Counter()
        self._left: frozenset[str] = frozenset()

    def begin(self) -> None:
        """A life begins: what earlier ones died of is over."""
        self._left = self._armed - {line.split()[0] for line in self.deaths()}

    def deaths(self) -> Sequence[str]:
        """Return the record, a line for each point and the time of the death at it; one death may be at several."""
        return self._path.read_text().splitlines() if self._path.exists() else ()

    def meet(self, found: Iterable[str]) -> None:
        """The process is at all these points at once: die if any of them is armed."""
        here = []
        for point in found:
            self._met[point] += 1
            times = self._met[point]
            here.append(point if times == 1 else f"{point}#{times}")
        if fatal := self._left.intersection(here):
            now = time.time()
            with self._path.open("a") as record:
                record.write("".join(f"{point} {now:.6f}\n" for point in sorted(fatal)))
            os.kill(os.getpid(), signal.SIGKILL)


_fate = _Fate()


def _meet(names: Sequence[str], when: str) -> None:
    _fate.meet(f"{name}:{when}" for name in names)


# ------------------------------------------------------------------------------------------------------------- wrapping


def arm() -> None:
    """Put every point of the program in place, in this process."""
    for target, size in _SMALLER.items():
        with _unless_missing():
            owner, name, _ = _find(target)
            setattr(owner, name, size)
    owner, name, patience = _find("remote_trainer.service.app:Policy")
    setattr(owner, name, functools.partial(patience, **_SOONER))
    _wrap(_PERFORM, lambda _, effect: [f"effect.{type(effect).__name__}"])
    for place, targets in _INSIDES.items():
        for target in targets:
            _wrap(target, _always(place))
    for port, targets in (*_IMPLEMENTATIONS.items(), ("driver", _drivers())):
        for target in targets:
            for verb in _ACTS[port]:
                _wrap(f"{target}.{verb}", _saved if (port, verb) == ("store", "save") else _always(f"{port}.{verb}"))


def _drivers() -> tuple[str, ...]:
    return tuple(point.value for point in entry_points(group=plugins.DRIVER_GROUP))


def _always(place: str) -> Callable[..., Sequence[str]]:
    return lambda *_, **__: [place]


def _saved(_: object, changes: Sequence[Change]) -> Sequence[str]:
    """Return what a transaction saves."""
    return [f"save.{kind}" for change in changes for kind in _kinds(change)]


def _kinds(change: Change) -> Iterator[str]:
    for event in change.events:
        yield f"{event.data['from']}-{event.data['to']}" if event.kind == "phase" else event.kind
    if change.job is not None and not change.events:
        yield "document"
    if change.logs:
        yield "log"
    if change.metrics:
        yield "metrics"


def _find(target: str) -> tuple[Any, str, Any]:
    """Return a function and where it hangs: ``module:Class.function``, ``module:function``."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    return owner, name, getattr(owner, name)


def _wrap(target: str, names: Callable[..., Sequence[str]]) -> None:
    with _unless_missing():
        owner, name, verb = _find(target)
        setattr(owner, name, _wrapper(verb)(verb, names))


def _unless_missing() -> AbstractContextManager[None]:
    """What needs an extra that is not installed cannot be reached either."""
    return contextlib.suppress(ImportError, ConfigError)


def _lasts(verb: Any) -> bool:
    return inspect.iscoroutinefunction(verb) or _wrapper(verb) is _context


def _wrapper(verb: Any) -> Callable[[Any, Callable[..., Sequence[str]]], Any]:
    if inspect.iscoroutinefunction(verb):
        return _coroutine
    return _context if inspect.isasyncgenfunction(getattr(verb, "__wrapped__", None)) else _plain


def _coroutine(verb: Any, names: Callable[..., Sequence[str]]) -> Any:
    @functools.wraps(verb)
    async def mortal(*args: Any, **kwargs: Any) -> Any:
        here = names(*args, **kwargs)
        _meet(here, "before")
        # The loop's next turn comes once the verb waits for an answer: what it asked for is on its way.
        during = asyncio.get_running_loop().call_soon(_meet, here, "during")
        try:
            result = await verb(*args, **kwargs)
        finally:
            during.cancel()
        _meet(here, "after")
        return result

    return mortal


def _context(verb: Any, names: Callable[..., Sequence[str]]) -> Any:
    @contextlib.asynccontextmanager
    async def mortal(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        here = names(*args, **kwargs)
        _meet(here, "before")
        async with verb(*args, **kwargs) as value:
            _meet(here, "during")
            yield value
        _meet(here, "after")

    return mortal


def _plain(verb: Any, names: Callable[..., Sequence[str]]) -> Any:
    @functools.wraps(verb)
    def mortal(*args: Any, **kwargs: Any) -> Any:
        here = names(*args, **kwargs)
        _meet(here, "before")
        result = verb(*args, **kwargs)
        _meet(here, "after")
        return result

    return mortal


# --------------------------------------------------------------------------------------------------------------- living


def main() -> NoReturn:
    """Live, die and live again until the command ends by itself; its exit status is ours."""
    arguments = sys.argv[1:]
    arm()
    from remote_trainer.cli import main as remote_trainer
    from remote_trainer.cli import run as run_training
    from remote_trainer.service import background  # noqa: F401 - loaded once, not in each life

    training = arguments[:1] == ["run-training"]
    program, sys.argv = (run_training.main, arguments) if training else (remote_trainer.main, ["remote-trainer", *arguments])
    gc.freeze()  # no life looks through what all share: that would be most of what a short one costs
    while True:
        before = len(_fate.deaths())
        code = _live(program)
        if code != -signal.SIGKILL or len(_fate.deaths()) == before:  # it ended by itself, or at somebody else's hand
            sys.exit(code if code >= 0 else 128 - code)


def _live(program: Callable[[], NoReturn]) -> int:
    """Run the program in a process of its own and return how it ended. A request to end is passed on; between two lives nobody hears it."""
    life = 0

    def pass_on(number: int, _: object) -> None:
        if life:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(life, number)

    signal.signal(signal.SIGTERM, pass_on)
    life = os.fork()
    if not life:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the program has ears of its own: who asks, asks again
        _fate.begin()
        program()
    status = os.waitpid(life, 0)[1]
    life = 0
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
