"""The SSH connections to one host: one for all its jobs, further ones only where the server's MaxSessions asks for them.

Rules for editing: one login at a time per host (sshd's MaxStartups drops more), and after a failed one the next waits, longer each time
and with jitter, however many callers ask. A caller never waits for an attempt that began before it asked and failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar
from weakref import WeakSet

import asyncssh

from remote_trainer.errors import HostUnreachable

T = TypeVar("T")

BACKOFF_S = (0.2, 10.0)  # after the first failed login, and at most
_UNMET_S = 2.0  # and at most for a host that has never let us in: it may be booting, and paid for


class Flow:
    """Whether a connection takes more data now, for everybody who writes to it."""

    def __init__(self) -> None:
        self.open = True
        self._told: WeakSet[Writer] = WeakSet()
        self._turn = 0  # who is told first that there is room again

    def tell(self, writer: Writer) -> None:
        """Let a writer know, now and whenever it changes."""
        self._told.add(writer)
        writer.note_line(self.open)

    def pause(self) -> None:
        """The line takes no more."""
        self._change(False)

    def resume(self) -> None:
        """It does again."""
        self._change(True)

    def _change(self, takes: bool) -> None:
        self.open = takes
        self._turn += takes
        writers = tuple(self._told)
        first = self._turn % max(
            1, len(writers)
        )  # who is told first fills the line: the same one each time would keep the others waiting
        for writer in (*writers[first:], *writers[:first]):
            writer.note_line(takes)


class Writer(Protocol):
    """Who writes to a connection."""

    def note_line(self, takes: bool) -> None: ...


class Link:
    """One connection and how many channels of ours it carries."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self.connection = connection
        self.channels = 0
        self.full = False  # the server refused one more channel
        self.proven = False  # it has carried one
        self.doubted = False  # something on it does not move
        self.flow = Flow()
        # asyncssh bounds what each channel has under way, and queues all of it: on a slow line a keepalive would wait behind minutes
        # of data. Its own handlers of these two calls of the event loop do nothing.
        connection.pause_writing = self.flow.pause  # type: ignore[method-assign]
        connection.resume_writing = self.flow.resume  # type: ignore[method-assign]

    @property
    def usable(self) -> bool:
        return not self.connection.is_closed() and not self.full and not self.doubted


class Pool:
    """Hands out room for channels."""

    def __init__(self, connect: Callable[[], Awaitable[asyncssh.SSHClientConnection]], address: str) -> None:
        self._connect, self._address = connect, address
        self._links: list[Link] = []
        self._login: asyncio.Task[Link] | None = None
        self._met = False
        self._failures = 0
        self._not_before = 0.0  # monotonic
        self._closed = False

    async def channel(self, start: Callable[[Link], Awaitable[T]]) -> tuple[T, Link]:
        """Start a channel on a connection that has room. Give the link back with ``release``."""
        while True:
            link = self._with_room() or await self._grow()
            link.channels += 1
            try:
                channel = await start(link)
                link.proven = True
                return channel, link
            except asyncssh.ChannelOpenError as error:
                # The command was not sent, so another connection may be asked. The server may still count channels that we have left.
                hopeless = not link.proven and link.channels == 1 and not link.connection.is_closed()
                link.full = True
                self.release(link, opened=False)
                if hopeless:
                    raise HostUnreachable(f"{self._address} lets us log in but not run commands: {error.reason}") from error
            except (asyncssh.Error, OSError) as error:
                self.release(link, opened=False)
                raise HostUnreachable(f"the connection to {self._address} broke: {error or type(error).__name__}") from error
            except BaseException:
                self.release(link, opened=False)
                raise

    def release(self, link: Link, *, opened: bool = True) -> None:
        """Note that a channel is over."""
        link.channels -= 1
        if opened:
            link.full = False
        self._links = [one for one in self._links if not one.connection.is_closed()]
        spare = any(one is not link and one.usable for one in self._links)
        if link.channels == 0 and link in self._links and (link.full or link.doubted or spare):
            self._links.remove(link)
            link.connection.close()

    def doubt(self) -> None:
        """Open nothing more on the connections there are; each is closed once its last channel is over."""
        for link in tuple(self._links):
            link.doubted = True
            if link.channels == 0 and link.proven:  # else it was just opened for somebody
                self._links.remove(link)
                link.connection.close()

    async def close(self) -> None:
        """Close every connection, and break off a login."""
        self._closed = True
        if self._login:
            self._login.cancel()
            await asyncio.wait([self._login])
        links, self._links = self._links, []
        for link in links:
            link.connection.close()
        for link in links:
            await link.connection.wait_closed()

    def _with_room(self) -> Link | None:
        return next((link for link in self._links if link.usable), None)

    async def _grow(self) -> Link:
        if self._closed:
            raise HostUnreachable(f"the transport to {self._address} was closed")
        if self._login is None or self._login.done():
            self._login = asyncio.create_task(self._log_in(), name=f"log in to {self._address}")
            self._login.add_done_callback(_retrieved)
        # A caller that gives up must not end the login that others wait for.
        try:
            return await asyncio.shield(self._login)
        except asyncio.CancelledError:
            if self._closed:
                raise HostUnreachable(f"the transport to {self._address} was closed") from None
            raise

    async def _log_in(self) -> Link:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        try:
            link = Link(await self._connect())
        except HostUnreachable:
            first, most = BACKOFF_S
            ceiling = min(most if self._met else _UNMET_S, first * 2 ** min(self._failures, 30))  # larger ones overflow
            self._failures += 1
            self._not_before = time.monotonic() + random.uniform(ceiling / 2, ceiling)  # noqa: S311 # jitter, no secret
            raise
        self._met, self._failures, self._not_before = True, 0, 0.0
        self._links.append(link)
        return link


def _retrieved(task: asyncio.Task[Link]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()  # all who waited may have gone
