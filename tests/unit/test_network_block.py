"""Tests cannot leave this machine by accident."""

from __future__ import annotations

import socket

import pytest

from tests.support.network import NetworkBlocked


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1"])
def test_connection_to_another_machine_is_blocked(address: str) -> None:
    """A connection to an address that is not this machine's is an error that nothing takes for an outage."""
    with socket.socket() as client, pytest.raises(NetworkBlocked):
        client.connect((address, 80))


def test_name_of_another_machine_is_not_looked_up() -> None:
    """Not even the address of another machine is asked for."""
    with pytest.raises(NetworkBlocked):
        socket.getaddrinfo("example.org", 80)


def test_name_that_never_exists_is_answered_at_once() -> None:
    """A name reserved for never existing fails as a resolver would say it, without asking one."""
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("host.invalid", 22)


def test_loopback_is_free() -> None:
    """This machine itself may be spoken to."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5):
        pass
