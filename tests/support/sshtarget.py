"""What every machine of the tests offers a client: address, user, keys, and the lines that pin them.

Rules for editing: one key pair lets in, one key pair proves the host; both lie in `folder` from `make_keys` on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from remote_trainer.testing import openssh


@dataclass
class SshTarget:
    """Somewhere to log in."""

    folder: Path
    host: str
    port: int
    user: str

    @property
    def key_path(self) -> Path:
        """The private key that is let in."""
        return self.folder / "client_key"

    @property
    def host_key_public(self) -> str:
        """The host's public key, as `ssh-ed25519 AAAA…`."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def known_hosts_line(self) -> str:
        """The line for a known_hosts file that pins the present host key."""
        name = self.host if self.port == 22 else f"[{self.host}]:{self.port}"
        return f"{name} {self.host_key_public}"

    def known_hosts(self) -> Path:
        """A known_hosts file with exactly the present host key."""
        path = self.folder / "known_hosts"
        path.write_text(self.known_hosts_line + "\n")
        return path

    def ssh_command(self, *options: str) -> list[str]:
        """An OpenSSH client command line that logs in here; append the remote command to it."""
        pinned = ["-o", f"UserKnownHostsFile={self.known_hosts()}", "-o", "StrictHostKeyChecking=yes"]
        key = ["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(self.key_path), "-p", str(self.port)]
        return ["ssh", "-F", "none", *pinned, *key, *options, f"{self.user}@{self.host}"]

    def answers(self) -> bool:
        """Whether an SSH server greets at the address."""
        return openssh.greets(self.host, self.port)


def make_keys(folder: Path) -> None:
    """The two key pairs; the client's public key is also the list of those let in."""
    folder.mkdir(parents=True, exist_ok=True)
    openssh.new_key(folder / "host_key")
    openssh.new_key(folder / "client_key", "test")
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
