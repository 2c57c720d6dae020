"""Keeps tests off the network: only loopback and the tests' own containers may be spoken to.

Rules for editing: an audit hook sees every connection of this process, whichever library makes it, and cannot be taken out again.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

_allowed: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
]
_lifted = False


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine. Not an OSError: the product would take that for an outage and hide it."""


def allow(network: str) -> None:
    """Let tests reach the addresses of their own containers."""
    _allowed.append(ipaddress.ip_network(network))


def lift() -> None:
    """Let this process reach everything from now on: for tests of a real provider, which run alone and only when asked for."""
    global _lifted
    _lifted = True


def block() -> None:
    """From now on, for the rest of the process."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        # Unix sockets have paths, netlink and the like have tuples of numbers.
        if isinstance(address, tuple) and address and isinstance(address[0], str):
            _check_host(address[0])
    elif event == "socket.getaddrinfo" and arguments[0]:
        _check_host(arguments[0])


def _check_host(host: str | bytes) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if _lifted or name in ("", "localhost"):
        return
    # Reserved for names that never exist (RFC 2606): answered here, as no resolver is asked.
    if name.endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        raise NetworkBlocked(f"a test asked for the address of {name}") from None
    if not any(address in network for network in _allowed):
        raise NetworkBlocked(f"a test wanted to speak to {name}")
