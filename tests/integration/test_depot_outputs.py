"""The list of outputs on a host whose disk is full: nothing that is there passes for missing."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.depot_host import FILES, KEY, KINDS, DepotHost, host_of, make, transport_of

pytestmark = [pytest.mark.shells, pytest.mark.fault("host-disk-full")]


@pytest.fixture(params=[kind for kind in KINDS if kind != "nobody"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DepotHost]:
    """A host whose root is a disk of one MiB."""
    folder = Path(tempfile.mkdtemp(prefix="rt-small-"))
    root = folder / "root"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield await host_of(transport_of(request.param, folder), root, tmp_path / "cache")
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.parametrize("known", [False, True], ids=["first look", "looked at before"])
async def test_a_full_disk_hides_no_output(host: DepotHost, known: bool) -> None:
    """Every file is listed with its size and digest, whether or not its digest was noted while there was room."""
    output = host.work() / "output"
    make(output, FILES)
    for number in range(40):
        (output / f"more {number}").write_bytes(os.urandom(500))
    there = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file()
    }
    if known:
        await host.depot.outputs(KEY, ["**"], settled_s=0)
    with (host.root / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    for _ in range(2):
        listed = await host.depot.outputs(KEY, ["**"], settled_s=0)
        assert {each.path: each.sha256 for each in listed} == there
