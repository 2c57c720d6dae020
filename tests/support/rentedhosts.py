"""Instances of the simulated Vast.ai as container hosts: addresses of their own, root's login, and a plug that can be pulled.

Rules for editing: as for ``remote_trainer.testing.vast.machines``; what a container forgets when it boots is put back here.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from remote_trainer.testing.vast.machines import Address, Harm, Order, cannot
from tests.support.containers import ContainerHost, Fleet


@dataclass
class _Rented:
    order: Order
    host: ContainerHost
    keys: tuple[str, ...]


class ContainerMachines:
    """One container for each instance."""

    instant = False

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rented: dict[int, _Rented] = {}

    def start(self, order: Order) -> Address:
        self._rented[order.instance] = _Rented(order, self._fleet.launch(), tuple(order.keys))
        for name, text in order.files.items():
            self._sh(order.instance, f"umask 077; printf %s {shlex.quote(text)} >/root/{name}")
        return self._booted(order.instance)

    def halt(self, instance: int) -> None:
        self._rented[instance].host.kill()

    def boot(self, instance: int, *, moved: bool = False) -> Address:
        self._rented[instance].host.start()
        return self._booted(instance)

    def remove(self, instance: int) -> None:
        if (rented := self._rented.pop(instance, None)) is not None:
            rented.host.remove()

    def let_in(self, instance: int, keys: Sequence[str]) -> None:
        self._rented[instance].keys = tuple(keys)
        lines = " ".join(shlex.quote(key.strip()) for key in keys) or "''"
        self._sh(instance, f"printf '%s\\n' {lines} >/root/.ssh/authorized_keys")

    def harm(self, instance: int, how: Harm) -> None:
        host = self._rented[instance].host
        match how:
            case Harm.CUT:
                host.cut()
            case Harm.HEAL:
                host.heal()
            case _:
                raise cannot("a container", how)

    def _booted(self, instance: int) -> Address:
        rented = self._rented[instance]
        self.let_in(instance, rented.keys)
        if rented.order.onstart:
            variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in rented.order.env.items())
            script = f"cd /root && env {variables} setsid sh -c {shlex.quote(rented.order.onstart)} >/root/onstart.log 2>&1 </dev/null &"
            self._sh(instance, script)
        return rented.host.host, rented.host.port

    def _sh(self, instance: int, script: str) -> None:
        self._rented[instance].host.exec("sh", "-c", script)
