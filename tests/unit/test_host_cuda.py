"""Whether CUDA can be used on a host: the script under true shells and a true Python, with a driver library that is made up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.effects import Seen
from remote_trainer.errors import HostLacks
from remote_trainer.host.cuda import Cuda, read
from remote_trainer.host.scripts import text
from remote_trainer.model import HostFacts, Instance, Place, Resources
from remote_trainer.ports import Abilities, Completed
from remote_trainer.worker.machine import Machine

#: Python's way to libraries, with a libcuda behind it whose functions fail as the environment says: NAME=CODE.
_CTYPES = """\
import os
class c_int:
    def __init__(self, value=0): self.value = value
class c_void_p(c_int): pass
class c_char_p:
    value = None
def byref(it): return it
def CDLL(name):
    if name != "libcuda.so.1" or os.environ.get("ABSENT"): raise OSError(name)
    return Driver()
class Driver:
    def __getattr__(self, name):
        def function(*arguments):
            if name == "cuGetErrorName": arguments[1].value = b"CUDA_ERROR_" + os.environ.get("WORDS", "X").encode()
            if name == "cuDriverGetVersion": arguments[0].value = 12080
            if name == "cuDeviceGetCount": arguments[0].value = 2
            return int(os.environ.get(name, "0"))
        return function
"""


def tried(folder: Path, *, shell: Sequence[str] = ("sh",), path: str = "", **environment: str) -> Cuda:
    """Run the script as a host would."""
    (folder / "ctypes.py").write_text(_CTYPES)
    (folder / "python3").unlink(missing_ok=True)
    (folder / "python3").symlink_to(sys.executable)
    given = {"PATH": path or f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(folder), **environment}
    done = subprocess.run([*shell, "-c", text("cuda")], env=given, capture_output=True, text=True, check=True)
    return read(done.stdout.strip())


@pytest.mark.parametrize("shell", [("sh",), ("bash",), ("busybox", "sh")], ids=lambda shell: shell[0])
def test_a_driver_that_works(tmp_path: Path, shell: tuple[str, ...]) -> None:
    """It is asked for a context on each GPU, in every shell."""
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    assert tried(tmp_path, shell=shell) == Cuda("CUDA 12.8, devices: 2", 2)


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_refuses(tmp_path: Path, function: str) -> None:
    """A container's CUDA that is too new for the driver, or a GPU that fell off the bus, is told by its own name."""
    cuda = tried(tmp_path, **{function: "804", "WORDS": "COMPAT_NOT_SUPPORTED_ON_DEVICE"})
    assert (cuda.devices, cuda.fault) == (0, f"{function} fails with 804 (CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE)")


def test_what_cannot_be_tried_is_no_fault(tmp_path: Path) -> None:
    """An image without Python, or without the driver's library, is not the machine's: nvidia-smi is believed."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "sh").symlink_to("/bin/sh")
    assert tried(tmp_path, path=str(empty)) == Cuda("not tried: no python3 there")
    assert tried(tmp_path, ABSENT="1") == Cuda("not tried: no libcuda.so.1 there")
    assert read("\x1b[31m" + "x" * 500).words == "not tried: ?[31m" + "x" * 95
    assert read("").words == "not tried: no answer"


class OneHost:
    """A host with one GPU by its facts, on which the script says that."""

    def __init__(self, said: str) -> None:
        self.said, self.address, self.transport = said, "root@203.0.113.9", self

    async def facts(self, host: object, *, anew: bool = False) -> HostFacts:
        return HostFacts(incarnation="i", boot="b", gpus=("X",), gpu_mem_mib=(24_000,))

    async def host(self, driver: object, instance: Instance) -> OneHost:
        return self

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        return Completed(0, f"{self.said}\n".encode(), b"")


async def prepared(said: str, *, borrowed: bool = False, gpus: int = 1) -> str:
    """Return what is known of CUDA on a machine once it is set up."""
    host, seen = OneHost(said), [Seen(since=cast(Any, None))]
    instance = Instance(id="1", label="l", borrowed=borrowed)
    job = SimpleNamespace(
        id="j",
        attempt=SimpleNamespace(instance=instance, facts=None),
        plan=SimpleNamespace(resources=Resources(gpus=gpus), health="", tool="t@1"),
        place=Place(driver="test"),
    )
    driver = SimpleNamespace(abilities=Abilities(borrowed=borrowed))
    patient = SimpleNamespace(job=job, driver=driver, seen=seen[0], observe=lambda change: seen.append(change(seen[-1])))
    await Machine(cast(Any, host), cast(Any, patient)).prepare_host()
    facts = seen[-1].host
    assert facts is not None
    return facts.cuda


async def test_a_rented_machine_without_cuda_is_changed() -> None:
    """One that fails, or has fewer devices than the tool needs, cannot serve; one that works, or cannot be asked, can."""
    assert await prepared("ok 12080 1") == "CUDA 12.8, devices: 1"
    assert await prepared("unknown no python3 there") == "not tried: no python3 there"
    for said, why in (("fails cuInit 804 CUDA_ERROR_X", "cuInit fails with 804"), ("ok 12080 0", "has 0 devices, 1 needed")):
        with pytest.raises(HostLacks, match=why):
            await prepared(said)


async def test_nobody_asks_where_it_does_not_matter() -> None:
    """A borrowed machine is its owner's to know, and a tool that needs no GPU needs no CUDA."""
    assert await prepared("fails cuInit 999 CUDA_ERROR_UNKNOWN", borrowed=True) == ""
    assert await prepared("fails cuInit 999 CUDA_ERROR_UNKNOWN", gpus=0) == ""
