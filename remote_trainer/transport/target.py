"""What a user may write for an SSH host: `user@box:2222`, `box`, `[::1]:22`, `ssh://user@box`, or an alias of ~/.ssh/config.

Rules for editing: pure text, no look-ups; what an alias stands for is read by the clients (asyncssh, OpenSSH) themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote_trainer.errors import ConfigError

# No leading dash (it would be an option of ssh), no blanks, no control characters, nothing a shell or ssh(1) would expand.
_SHAPE = re.compile(
    r"(?:ssh://)?(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*))(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to log in; what is None comes from ~/.ssh/config or the defaults."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse_target(text: str) -> Target:
    """Return the parts, or raise ConfigError that shows the accepted forms."""
    found = _SHAPE.fullmatch(text.strip())
    port = int(found["port"]) if found and found["port"] else None
    if not found or (port is not None and not 1 <= port <= 65535):
        raise ConfigError(f"not an SSH host: {text!r}; write user@box, user@box:2222, user@[::1]:22 or an alias of ~/.ssh/config")
    return Target(found["v6"] or found["host"], found["user"], port)
