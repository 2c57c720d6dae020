"""A host for the tests of shipping: a root folder, one shell, one user, behind pipes; and the data that is shipped to it.

Rules for editing: the real script in the real shell; what goes wrong is done to real files and processes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.pack import pack
from remote_trainer.host import scripts
from remote_trainer.host.depot import Depot
from remote_trainer.model import Input
from remote_trainer.ports import DriverSettings, Transport
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.command import CommandTransport
from remote_trainer.transport.ssh import SshTransport
from tests.support.smalldisk import small_disk
from tests.support.sshd import SshdServer

NOBODY = 65534
KEY = "rt-test-job-a1"
KINDS = ["dash", "bash", "busybox"] + (["nobody"] if os.getuid() == 0 else [])
FILES = {
    "a b/c.txt": b"words",
    "-rf": b"a name like an option",
    " spaces ": b"around",
    "ünï/cödé.txt": "grüße".encode(),
    "empty": b"",
    "long/" * 40 + "y" * 200: b"long",
    "quote'\"$(x)`\\": b"shell",
    "sub/*?[": b"glob",
}


@dataclass
class DepotHost:
    """A host's depot, its root folder on this machine, and a cache to ship from."""

    depot: Depot
    root: Path
    cache: Cache

    def tree(self, given: Input) -> Path:
        return self.root / "data" / given.digest / "tree"

    def work(self) -> Path:
        """The job's work folder, as its step has made it."""
        folder = self.root / "j" / KEY / "w"
        (folder / "output").mkdir(parents=True)
        for place in (folder.parent.parent, folder.parent, folder, folder / "output"):
            os.chown(place, self.root.stat().st_uid, -1)
        return folder

    def draft(self, given: Input) -> Path:
        return self.root / "data" / "tmp" / given.digest

    async def packed(self, folder: Path, name: str = "dataset") -> Input:
        return await pack(str(folder), self.cache, name=name)


async def host_of(transport: Transport, root: Path, cache: Path) -> DepotHost:
    """Set up a host as bootstrap would."""
    await scripts.install(transport, str(root))
    (root / "inc").write_text("test")
    return DepotHost(Depot(transport, str(root)), root, Cache(cache))


@asynccontextmanager
async def depot_host(kind: str, tmp: Path, *, disk: str = "") -> AsyncIterator[DepotHost]:
    """A host of that kind, ``tmp`` for our end; where ``disk`` is given (`1m`) its root is a disk of that size."""
    folder = Path(tempfile.mkdtemp(prefix="rt-depot-"))  # pytest's own are closed to other users
    try:
        with small_disk(folder / "rt root", disk) if disk else nullcontext(folder / "rt root") as root:
            yield await host_of(transport_of(kind, folder), root, tmp / "cache")
    finally:
        subprocess.run(["chmod", "-Rf", "u+w", folder], check=False)  # inputs are read-only
        shutil.rmtree(folder, ignore_errors=True)  # a mark that is being replaced may vanish meanwhile


@asynccontextmanager
async def far_host(server: SshdServer, link: Link, tmp: Path, **settings: float) -> AsyncIterator[DepotHost]:
    """A host that is an OpenSSH server behind a link, ``tmp`` for our end; the settings are those of drivers."""
    known = DriverSettings(state_dir=tmp / "state", ssh_key=server.key_path, **settings)  # type: ignore[arg-type]
    transport = SshTransport(f"{server.user}@{server.host}:{link.port}", known, host_key=server.host_key_public)
    yield await host_of(transport, server.home / "rt", tmp / "cache")
    await transport.close()


def transport_of(kind: str, folder: Path) -> CommandTransport:
    """A way to a machine with only that shell; `nobody` is dash for a user without rights."""
    programs = folder / "bin"
    programs.mkdir()
    path = f"{programs}:/usr/bin:/bin"
    if kind == "busybox":  # nothing but its applets
        path = str(programs)
        for applet in subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
            (programs / applet).symlink_to("/bin/busybox")
    else:
        shell = "dash" if kind == "nobody" else kind
        (programs / "sh").symlink_to(shutil.which(shell) or shell)
    user = ["/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if kind == "nobody" else []
    if user:
        os.chown(folder, NOBODY, NOBODY)
    return CommandTransport([*user, "/usr/bin/env", "-i", f"PATH={path}", f"HOME={folder}"], address=kind)


def make(folder: Path, files: dict[str, bytes] = FILES, *, big: int = 0) -> Path:
    """A small tree of odd names; with one file of ``big`` bytes, no two chunks alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "no files" / "here").mkdir(parents=True, exist_ok=True)
    if big:
        block = os.urandom(1 << 20)
        with (folder / "big file").open("wb") as file:
            for number in range(-(-big // len(block))):
                file.write((number.to_bytes(8, "big") + block[8:])[: big - number * len(block)])
    return folder


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, None for folders."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


async def until(look: Callable[[], object]) -> None:
    """Wait for a change of the host's files, of which nobody tells us; pytest's time-out bounds it."""
    while not look():
        await asyncio.sleep(0.005)
