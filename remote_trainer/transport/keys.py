"""The key pair with which this installation logs in to machines it rents: made once, kept in the state folder.

Rules for editing: the private key is never readable by others, not even for a moment; two processes that make it at once end up with
the same one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from tempfile import mkdtemp

import asyncssh

from remote_trainer.errors import ConfigError

_NAME = "id_ed25519"


def own_key(state_dir: Path) -> Path:
    """Return the private key's path; its public half lies beside it with the suffix ``.pub``. ConfigError if it cannot be kept."""
    folder = state_dir / "ssh"
    path = folder / _NAME
    try:
        if not path.with_suffix(".pub").is_file() or not path.is_file():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(folder)
    except OSError as error:
        raise ConfigError(f"the key for rented machines cannot be kept in {folder}: {error}; check the state folder") from error
    return path


def _make(folder: Path) -> None:
    """Make a pair in a folder of its own and let the first one that is complete count: the public half is made from what counts."""
    private = asyncssh.generate_private_key("ssh-ed25519", comment="remote-trainer")
    made = Path(mkdtemp(prefix=".new-", dir=folder))  # mode 0700
    try:
        private.write_private_key(made / _NAME)
        (made / _NAME).chmod(0o600)
        with contextlib.suppress(FileExistsError):
            os.link(made / _NAME, folder / _NAME)
        counts = asyncssh.read_private_key(folder / _NAME)
        counts.write_public_key(made / "public")
        os.replace(made / "public", (folder / _NAME).with_suffix(".pub"))
    finally:
        for left in made.iterdir():
            left.unlink()
        made.rmdir()
