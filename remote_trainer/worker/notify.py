"""Tells systemd how the worker does (``sd_notify``): readiness, stopping, watchdog. Silent where nobody listens."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send state lines such as ``READY=1`` to the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            return  # the manager went away: nobody to tell, and no reason to stop working


def watchdog_s() -> float | None:
    """Return how often ``WATCHDOG=1`` is due (half of what the manager allows), None if it does not watch."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(allowed) / 2e6 if allowed.isdigit() and mine else None
