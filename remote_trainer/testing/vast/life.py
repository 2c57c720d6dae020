"""What happens to an instance when its time has come: boots, faults, stops, the end.

Rules for editing: functions of the provider and one instance, called under its lock; what a machine is asked is asked by `hands`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_trainer.testing.vast.doors import DOORS, LATE_BANNER
from remote_trainer.testing.vast.faults import Armed
from remote_trainer.testing.vast.instances import MESSAGES, Instance, Step
from remote_trainer.testing.vast.machines import Harm

if TYPE_CHECKING:
    from remote_trainer.testing.vast.provider import Provider

_LATE_BANNER_S, _KEY_DENIED_S, _UNKNOWN_S = 45.0, 120.0, 60.0


def begin(sim: Provider, instance: Instance) -> None:
    """Let a new instance come up: its machine boots meanwhile."""
    timings, now = sim.timings, sim.now
    fault = sim.faults.strike("boot-", label=instance.label, offer=int(instance.offer["id"]))
    if fault is not None:
        instance.fault, instance.fault_s = fault.name, fault.seconds
        sim.note("fault", instance, fault.name)
    if instance.fault == "boot-small-disk":
        instance.disk_gb /= 2
    instance.intended = instance.coming = "running"
    for step, after_s in (
        (Step.CREATED, timings.scheduled_s),
        (Step.LOADING, timings.created_s),
        (Step.RUNNING, timings.loading_s),
    ):
        now += after_s
        instance.schedule(now, step)
    instance.machine = sim.hands.do(instance.id, "start", sim.order(instance))
    if instance.fault == "boot-key-denied":
        sim.hands.do(instance.id, "let_in", instance.id, ())


def take(sim: Provider, instance: Instance, step: Step, now: float) -> None:
    """Take a step that is due."""
    match step:
        case Step.CREATED:
            _created(instance)
        case Step.LOADING:
            _loading(instance)
        case Step.RUNNING:
            _running(sim, instance, now)
        case Step.BACK:
            instance.actual = "running"
            sim.hands.do(instance.id, "harm", instance.id, Harm.HEAL)
        case Step.OPEN:
            if instance.door is not None:
                instance.address = instance.door.open()
        case Step.KEYS:
            instance.fault = ""
            sim.hands.do(instance.id, "let_in", instance.id, tuple(instance.keys.values()))
        case Step.GONE:
            sim.vanish(instance, now)


def _created(instance: Instance) -> None:
    instance.actual, instance.current = "created", "running"
    if instance.fault == "boot-oci":
        instance.message, instance.plan = MESSAGES[instance.fault], []


def _loading(instance: Instance) -> None:
    instance.actual, instance.current, instance.message = "loading", "running", "#7 DONE 1.2s"
    if instance.fault in MESSAGES:
        instance.message, instance.plan = MESSAGES[instance.fault], []
    if instance.fault == "boot-halted":
        instance.intended = instance.current = instance.coming = "stopped"


def _running(sim: Provider, instance: Instance, now: float) -> None:
    if instance.fault in ("boot-exited", "boot-offline"):
        instance.actual = instance.fault.removeprefix("boot-")
        sim.hands.do(instance.id, "halt", instance.id)
        return
    assert instance.machine is not None, "an instance runs once its machine has booted"
    if (error := instance.machine.exception()) is not None:
        instance.message = f"Error response from daemon: {error}"
        return
    instance.suffered.clear()
    instance.address, instance.fault_s = _entrance(sim, instance, now), None
    instance.actual, instance.current, instance.running_since = "running", "running", now
    instance.message = f"success, running {instance.body.get('image')}/ssh"
    if instance.fault == "boot-gpu-missing":
        sim.hands.do(instance.id, "harm", instance.id, Harm.BREAK_GPU)
    sim.note("running", instance)


def _entrance(sim: Provider, instance: Instance, now: float) -> tuple[str, int]:
    """Return where clients find the machine, and schedule when what is wrong there ends."""
    assert instance.machine is not None
    address = instance.machine.result()
    if instance.fault == "boot-key-denied":
        instance.schedule(now + (_KEY_DENIED_S if instance.fault_s is None else instance.fault_s), Step.KEYS)
    if instance.fault not in DOORS:
        return address
    lasts_s = _LATE_BANNER_S if instance.fault == LATE_BANNER and instance.fault_s is None else instance.fault_s
    instance.door = sim.door(instance.fault, address)
    instance.fault = ""  # the next boot has no door
    if lasts_s is not None:
        instance.schedule(now + lasts_s, Step.OPEN)
    return "127.0.0.1", instance.door.port


def stop(sim: Provider, instance: Instance, why: str, *, shown: str = "stopped") -> None:
    """End everything in an instance; its disk stays and is paid."""
    instance.actual = shown
    instance.intended = instance.current = instance.coming = "stopped"
    instance.plan, instance.running_since = [], None
    if instance.machine is not None:
        sim.hands.do(instance.id, "halt", instance.id)
    sim.note("stopped", instance, why)


def resume(sim: Provider, instance: Instance) -> None:
    """Start one that was stopped."""
    instance.queued = False
    instance.intended = instance.coming = "running"
    if instance.machine is None:
        begin(sim, instance)
    else:
        _boot(sim, instance)


def reboot(sim: Provider, instance: Instance, *, moved: bool = False) -> None:
    """End every process in an instance and boot it again."""
    sim.hands.do(instance.id, "halt", instance.id)
    _boot(sim, instance, moved=moved)


def _boot(sim: Provider, instance: Instance, *, moved: bool = False) -> None:
    instance.actual, instance.current, instance.running_since = "loading", "running", None
    instance.machine = sim.hands.do(instance.id, "boot", instance.id, moved=moved)
    instance.plan = []
    instance.schedule(sim.now + sim.timings.reboot_s, Step.RUNNING)


def outbid(sim: Provider, instance: Instance, *, shown: str = "stopped") -> None:
    """Take the GPU away; it starts again by itself once the bid wins."""
    stop(sim, instance, "outbid", shown=shown)
    instance.queued = True


def strike(sim: Provider, instance: Instance, fault: Armed, now: float) -> None:
    """Let a fault befall an instance that runs."""
    instance.suffered.add(fault.name)
    sim.note("fault", instance, fault.name)
    match fault.name:
        case "run-unknown":
            instance.actual = "unknown"
            instance.schedule(now + fault.lasts(_UNKNOWN_S), Step.BACK)
        case "run-offline":
            instance.actual = "offline"
            sim.hands.do(instance.id, "harm", instance.id, Harm.CUT)
            if fault.seconds is not None:
                instance.schedule(now + fault.seconds, Step.BACK)
        case "run-outbid":
            outbid(sim, instance, shown=fault.shape or "stopped")
            sim.wanted_elsewhere(int(instance.offer["id"]), fault.seconds)
        case "run-reboot" | "run-moved":
            reboot(sim, instance, moved=fault.name == "run-moved")
        case "run-keys-wiped":
            sim.hands.do(instance.id, "let_in", instance.id, ())
        case name:
            sim.hands.do(instance.id, "harm", instance.id, _HARM[name])


_HARM = {"run-ssh-drop": Harm.DROP, "run-disk-full": Harm.FILL, "run-gpu-missing": Harm.BREAK_GPU}
