"""What every transport keeps to, as a pytest suite: subclass ``TransportContract`` and give it a ``transport`` fixture.

    class TestMine(TransportContract):
        @pytest.fixture
        async def transport(self): ...
        @pytest.fixture
        def folder(self): return "/an/empty/folder/on/the/host"

Rules for editing: only what ports.Transport promises; each docstring is one sentence of it. The host needs sh and the usual tools.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from remote_trainer.errors import CommandTimeout, DigestMismatch, HostError, Incomplete
from remote_trainer.ports import Transport

#: Arguments that a shell on the way would change.
ODD_ARGUMENTS = (
    "", " ", "two words", "line\nbreak", "tab\there", "'", '"', "\\", "\\'", "$HOME", "`id`", "$(id)", "*", "~", "!", "#", "-n", "--",
    "a;b", "a&b|c", ">x", "ünïcödé-日本-🐈", "\x01\x7f", "%s%n", "x" * 5000,
)  # fmt: skip
PATIENCE_S = 300.0


class TransportContract:
    """The suite."""

    @pytest.fixture
    def transport(self) -> Transport:
        """Return the transport under test; the fixture closes it afterwards."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self) -> str:
        """Return the absolute path of an empty folder on the host."""
        raise NotImplementedError

    async def test_arguments_arrive_exactly(self, transport: Transport) -> None:
        """Each argument arrives as it was given, whatever a shell would make of it."""
        done = await transport.run(["printf", r"%s\0", *ODD_ARGUMENTS])
        assert (done.code, done.stdout.decode().split("\0")[:-1]) == (0, list(ODD_ARGUMENTS))

    async def test_all_bytes_pass_both_ways(self, transport: Transport) -> None:
        """Stdin and both outputs are bytes, with every value and no conversion."""
        data = bytes(range(256)) * 300
        done = await transport.run(["sh", "-c", "tee /dev/stderr"], stdin=data)
        assert (done.code, done.stdout, done.stderr) == (0, data, data)

    async def test_ten_megabytes_through_a_channel(self, transport: Transport) -> None:
        """More than any buffer holds passes through one channel, while both ends write."""
        data = os.urandom(10_000_000)
        async with asyncio.timeout(PATIENCE_S), transport.open(["cat"]) as channel:

            async def feed() -> None:
                for start in range(0, len(data), 100_000):
                    await channel.write(data[start : start + 100_000])
                await channel.end()

            feeding = asyncio.create_task(feed())
            digest = hashlib.sha256()
            while piece := await channel.read(1 << 18):
                digest.update(piece)
            await feeding
            assert (digest.digest(), await channel.wait()) == (hashlib.sha256(data).digest(), 0)

    async def test_a_slow_reader_loses_nothing(self, transport: Transport) -> None:
        """What nobody reads yet waits on the host, and comes whole when it is read."""
        async with (
            asyncio.timeout(PATIENCE_S),
            transport.open(["sh", "-c", "head -c 9000000 /dev/zero; echo done >&2"]) as channel,
        ):
            first = await channel.read(1)
            await asyncio.sleep(0.2)  # time to fill every buffer on the way
            size = len(first)
            while piece := await channel.read():
                size += len(piece)
            assert (size, await channel.read_error()) == (9_000_000, b"done\n")

    async def test_both_outputs_with_one_reader(self, transport: Transport) -> None:
        """One reader gets both outputs as they come, and two empty pieces at the end of both."""
        async with (
            asyncio.timeout(PATIENCE_S),
            transport.open(["sh", "-c", "echo a; read x; echo b >&2; read x; echo c"]) as channel,
        ):
            said = []
            while (piece := await channel.read_both()) != (b"", b""):
                said.append(piece)
                await channel.write(b"go on\n")
            assert said == [(b"a\n", b""), (b"", b"b\n"), (b"c\n", b"")]
            assert await channel.wait() == 0

    async def test_exit_status(self, transport: Transport) -> None:
        """The exit status is the command's own; what is not there is 127, or 126 as container engines have it."""
        codes = [(await transport.run(argv)).code for argv in (["true"], ["sh", "-c", "exit 77"], ["no-such-program-here"])]
        assert codes[:2] == [0, 77]
        assert codes[2] in (126, 127)

    async def test_death_by_a_signal(self, transport: Transport) -> None:
        """A command that a signal ended did not exit 0."""
        assert (await transport.run(["sh", "-c", "kill -9 $$"])).code not in (0, 1)

    async def test_a_command_that_reads_nothing(self, transport: Transport) -> None:
        """Stdin that a command does not take is no error."""
        done = await transport.run(["echo", "hello"], stdin=b"x" * 3_000_000)
        assert (done.code, done.stdout) == (0, b"hello\n")

    async def test_time_limit(self, transport: Transport) -> None:
        """A command that takes longer than allowed raises CommandTimeout."""
        with pytest.raises(CommandTimeout, match="sleep"):
            await transport.run(["sleep", "60"], timeout_s=0.3)

    async def test_leaving_a_channel_ends_its_input(self, transport: Transport, folder: str) -> None:
        """A command that reads to the end of its input ends when its channel is left."""
        mark = f"{folder}/ended"
        async with transport.open(["sh", "-c", 'echo ready; cat >/dev/null; : >"$1"', "sh", mark]) as channel:
            assert await channel.read() == b"ready\n"
        await _appears(transport, mark)

    async def test_what_was_detached_goes_on(self, transport: Transport, folder: str) -> None:
        """A process in a session of its own outlives the channel that started it."""
        waiter = 'while [ ! -e "$1/go" ]; do sleep 0.05; done; : >"$1/done"'
        script = f"setsid sh -c '{waiter}' sh \"$1\" </dev/null >/dev/null 2>&1 & echo started"
        async with transport.open(["sh", "-c", script, "sh", folder]) as channel:
            assert await channel.read() == b"started\n"
        await transport.run(["touch", f"{folder}/go"])
        await _appears(transport, f"{folder}/done")

    async def test_many_channels_at_once(self, transport: Transport) -> None:
        """Forty commands talk at the same time."""
        everybody_in = asyncio.Barrier(40)

        async def talk(number: int) -> bytes:
            async with transport.open(["cat"]) as channel:
                await channel.write(b"%d" % number)
                said = await channel.read()
                await everybody_in.wait()
                return said

        async with asyncio.timeout(PATIENCE_S):
            said = await asyncio.gather(*(talk(number) for number in range(40)))
        assert said == [b"%d" % number for number in range(40)]

    async def test_push_and_pull(self, transport: Transport, folder: str, tmp_path: Path) -> None:
        """Pushed files arrive under their names in a folder that is made, with progress; pulled they are the same."""
        files = _files(tmp_path, {"big": 3_000_000, "small": 5, "empty": 0, "odd name-ü'": 77})
        told: list[tuple[int, int]] = []
        await transport.push(files, f"{folder}/new folder/below", progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (3_000_082, 3_000_082)
        assert told == sorted(told)
        for file in files:
            back = tmp_path / "back"
            await transport.pull(f"{folder}/new folder/below/{file.name}", back, size=file.stat().st_size)
            assert back.read_bytes() == file.read_bytes()
            back.unlink()

    async def test_push_leaves_what_is_there(self, transport: Transport, folder: str, tmp_path: Path) -> None:
        """A file that is there with its size is not sent again; another size is replaced."""
        files = _files(tmp_path, {"same": 6, "other": 6})
        await transport.run(["sh", "-c", 'cd "$1" && printf 123456 >same && printf 123 >other', "sh", folder])
        await transport.push(files, folder)
        there = (await transport.run(["sh", "-c", 'cat "$1/same" "$1/other"', "sh", folder])).stdout
        assert there == b"123456" + files[1].read_bytes()

    async def test_push_into_what_is_no_folder(self, transport: Transport, folder: str, tmp_path: Path) -> None:
        """A folder that cannot be made is an error of the host, in its words."""
        await transport.run(["sh", "-c", ': >"$1/file"', "sh", folder])
        with pytest.raises(HostError, match="file"):
            await transport.push(_files(tmp_path, {"a": 3}), f"{folder}/file/below")

    async def test_pull_goes_on_where_it_stopped(self, transport: Transport, folder: str, tmp_path: Path) -> None:
        """A partial target is completed, not fetched anew; a complete one costs nothing."""
        await transport.run(["sh", "-c", 'printf abcdefgh >"$1/f"', "sh", folder])
        target = tmp_path / "f"
        target.write_bytes(b"ABC")
        for _ in range(2):
            await transport.pull(f"{folder}/f", target, size=8)
            assert target.read_bytes() == b"ABCdefgh"

    async def test_pull_refuses_more_than_announced(self, transport: Transport, folder: str, tmp_path: Path) -> None:
        """A file that grew since it was announced is refused, and no byte too much is kept."""
        await transport.run(["sh", "-c", 'printf abcdefgh >"$1/f"', "sh", folder])
        with pytest.raises(DigestMismatch):
            await transport.pull(f"{folder}/f", tmp_path / "f", size=5)
        assert not (tmp_path / "f").exists() or (tmp_path / "f").stat().st_size <= 5

    @pytest.mark.parametrize("kind", ["absent", "link", "folder", "pipe", "short"])
    async def test_pull_of_what_is_not_the_file(self, transport: Transport, folder: str, tmp_path: Path, kind: str) -> None:
        """Links, folders, pipes, absent and short files raise Incomplete or DigestMismatch, and never hang."""
        make = {"absent": ":", "link": "ln -s /etc/passwd f", "folder": "mkdir f", "pipe": "mkfifo f", "short": "printf abc >f"}[
            kind
        ]
        await transport.run(["sh", "-c", f'cd "$1" && {make}', "sh", folder])
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises((Incomplete, DigestMismatch)):
                await transport.pull(f"{folder}/f", tmp_path / "f", size=50)

    async def test_close_is_idempotent(self, transport: Transport) -> None:
        """A transport can be closed twice, used or not."""
        await transport.run(["true"])
        await transport.close()
        await transport.close()


async def _appears(transport: Transport, path: str) -> None:
    script = 'while [ ! -e "$1" ]; do sleep 0.05; done'
    assert (await transport.run(["sh", "-c", script, "sh", path], timeout_s=PATIENCE_S)).code == 0


def _files(folder: Path, sizes: dict[str, int]) -> list[Path]:
    source = folder / "source"
    source.mkdir()
    for name, size in sizes.items():
        (source / name).write_bytes(os.urandom(size))
    return [source / name for name in sizes]
