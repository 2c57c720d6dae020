"""Which key a host must prove: the pinned one, else one that known_hosts has for it, else (once) whatever it shows.

Rules for editing: a key that was accepted is the pinned one from then on, for asyncssh and for OpenSSH's own client alike. There is no
way to switch the check off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import asyncssh
from asyncssh.public_key import get_default_public_key_algs

from remote_trainer.errors import ConfigError, HostKeyMismatch


def read_key(line: str) -> asyncssh.SSHKey:
    """Return the key of a line such as `ssh-ed25519 AAAA… comment`; ConfigError if it is none."""
    try:
        return asyncssh.import_public_key(line.strip())
    except asyncssh.KeyImportError as error:
        raise ConfigError(f"not an OpenSSH public key line: {line.strip()[:80]!r}; it looks like 'ssh-ed25519 AAAA…'") from error


def key_line(key: asyncssh.SSHKey) -> str:
    """Return type and base64 of a key, without its comment."""
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


class HostKeys:
    """The judge of one host's key over all connections of this process."""

    def __init__(self, pinned: str = "") -> None:
        self.pinned = key_line(read_key(pinned)) if pinned else ""

    def judge(self, address: str) -> Judgement:
        """Return the judge of one connection."""
        return Judgement(self, address)


class Judgement(asyncssh.SSHClient):
    """asyncssh's client callbacks for one connection: ``verdict`` is the error to raise when it said no."""

    def __init__(self, keys: HostKeys, address: str) -> None:
        self._keys, self._address = keys, address
        self._entries: list[asyncssh.SSHKnownHosts] = []
        self._expected: list[asyncssh.SSHKey] = []
        self.verdict: HostKeyMismatch | None = None

    def look_up(self, files: Sequence[Path], name: str, port: int) -> None:
        """Read what is known of a host before the connection; known_hosts files only when nothing is pinned."""
        if not self._keys.pinned:
            self._entries = _entries(files)
        self.known(name, "", port if port != 22 else None)

    def known(
        self, host: str, addr: str, port: int | None
    ) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """Return the trusted keys, trusted authorities and revoked keys of a host; asyncssh asks with its address, too."""
        self._expected = [read_key(self._keys.pinned)] if self._keys.pinned else []
        authorities: list[asyncssh.SSHKey] = []
        revoked: list[asyncssh.SSHKey] = []
        for entry in self._entries:
            found = entry.match(host, addr, port)
            self._expected += found[0]
            authorities += found[1]
            revoked += found[2]
        return self._expected, authorities, revoked

    @property
    def algorithms(self) -> list[str]:
        """Every kind of host key, the expected one's kind first: a server has several, and must show us the one we know."""
        first = [name for key in self._expected for name in key.sig_algorithms]
        return [name.decode() for name in dict.fromkeys([*first, *get_default_public_key_algs()])]

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Say whether a key that is not among the trusted ones may pass: only if none is known, on first use."""
        if not self._expected:
            return True
        expected = ", ".join(sorted({one.get_fingerprint() for one in self._expected}))
        self.verdict = HostKeyMismatch(
            f"{self._address} answers with the host key {key.get_fingerprint()}, but the known one is {expected}. "
            "It may be another machine. If it was reinstalled on purpose, remove the old key (ssh-keygen -R HOST, or the option "
            "host_key) and submit again"
        )
        return False

    def accept(self, key: asyncssh.SSHKey) -> None:
        """Pin what the connection was made with."""
        self._keys.pinned = key_line(key)


def _entries(files: Sequence[Path]) -> list[asyncssh.SSHKnownHosts]:
    """Return each readable line; one that is broken, or of a kind asyncssh does not know, counts for nothing, as in OpenSSH."""
    entries = []
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                entries.append(asyncssh.import_known_hosts(line + "\n"))
            except ValueError:
                continue
    return entries
