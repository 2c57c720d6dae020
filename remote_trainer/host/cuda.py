"""Whether programs can use the GPUs of a host: the driver's own word (cuda.sh), read.

An image whose CUDA is too new for the machine's driver, or a GPU that fell off its bus, shows in nvidia-smi all the same; a training then
runs on the CPU, paid for as a GPU's, or ends at once.

Rules for editing: what the host says is checked here; what could not be tried is no fault of the machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_trainer.host.scripts import text
from remote_trainer.ports import Transport

_TIMEOUT_S = 90.0
_OK = re.compile(r"ok ([0-9]{1,6}) ([0-9]{1,3})")
_FAILS = re.compile(r"fails (cu[A-Za-z0-9_]{1,60}) ([0-9]{1,6}) ([A-Za-z_]{1,80})")


@dataclass(frozen=True, slots=True)
class Cuda:
    """What came of trying."""

    words: str
    devices: int | None = None  # that can be used; None: it could not be tried
    fault: str = ""  # why none can


async def try_cuda(transport: Transport) -> Cuda:
    """Return what the driver of a host says. It takes about a second for each GPU."""
    done = await transport.run(["sh", "-c", text("cuda")], timeout_s=_TIMEOUT_S)
    return read(done.stdout[:1000].decode(errors="replace").strip())


def read(said: str) -> Cuda:
    """Return what a line of cuda.sh means."""
    if match := _OK.fullmatch(said):
        version, devices = int(match[1]), int(match[2])
        return Cuda(f"CUDA {version // 1000}.{version % 1000 // 10}, devices: {devices}", devices)
    if match := _FAILS.fullmatch(said):
        fault = f"{match[1]} fails with {match[2]} ({match[3]})"
        return Cuda(fault, 0, fault)
    why = "".join(char if char.isprintable() else "?" for char in said.removeprefix("unknown "))[:100]
    return Cuda(f"not tried: {why or 'no answer'}")
