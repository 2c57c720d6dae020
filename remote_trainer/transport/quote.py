"""The one place where an argument list becomes a shell command line.

Rules for editing: nothing else in the product joins words for a shell. The remote login shell may be any of sh, bash, zsh, dash, fish:
only what all of them read alike is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command_line(argv: Sequence[str]) -> str:
    """Return a line that makes a login shell become the command, each argument arriving exactly as given."""
    if not argv or any("\0" in word for word in argv):
        raise ValueError("a command needs a program, and no argument can hold a zero byte")
    # `exec`: no shell stays between us and the command, so its death by a signal is told as such.
    return "exec " + shlex.join(argv)
