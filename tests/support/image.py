"""The file system of a container host: a minimal Debian with an SSH server.

Made with debootstrap, as no image registry is asked for anything; kept as one archive whose name changes with the recipe.

Rules for editing: standard library only; needs root; a change of the recipe below makes a new archive by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.environment import CACHE, ORIGINAL

SUITE = "bookworm"
PACKAGES = "openssh-server,rsync,python3-minimal,procps"
_SETTLE = """\
set -eu
# "*" is a password nobody can type; without one the account counts as locked, and sshd lets no key in.
useradd --create-home --shell /bin/bash --password '*' trainer
rm -f /etc/ssh/ssh_host_*
"""
_LEFT_OUT = (
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "dev/*",
    "proc/*",
    "sys/*",
)

KEY = hashlib.sha256(repr((SUITE, PACKAGES, _SETTLE, _LEFT_OUT)).encode()).hexdigest()[:12]
ARCHIVE = CACHE / "images" / f"{KEY}.tar"


def missing() -> str | None:
    """Why there is no image, or None."""
    return None if ARCHIVE.exists() else "the container image is not prepared (make servers, as root, with debootstrap)"


def prepare() -> None:
    """Make the archive unless it is there; nothing happens where it cannot be made, and the suite is left out."""
    program = shutil.which("debootstrap", path=ORIGINAL.get("PATH", "") + ":/usr/sbin")
    if ARCHIVE.exists() or os.geteuid() != 0 or program is None:
        return
    ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rt-image-", dir=ARCHIVE.parent) as scratch:
        tree, half = Path(scratch) / "tree", Path(scratch) / "half.tar"
        bootstrap = [program, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(tree), *_mirror()]
        _run(bootstrap)
        _run(["chroot", str(tree), "/bin/sh", "-c", _SETTLE])
        _run(
            [
                "tar",
                "--numeric-owner",
                *(f"--exclude=./{pattern}" for pattern in _LEFT_OUT),
                "-C",
                str(tree),
                "-cf",
                str(half),
                ".",
            ]
        )
        half.replace(ARCHIVE)


def _mirror() -> list[str]:
    """The archive this machine's apt uses; debootstrap knows one of its own where apt names none."""
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        f"Codename: {SUITE}",
        "Component: main",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[:1]


def _run(command: list[str]) -> None:
    environment = {**ORIGINAL, "LC_ALL": "C"}
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
