"""What every host keeps to, as a pytest suite: subclass ``HostContract`` and give it a ``transport`` and a ``root`` fixture.

    class TestMine(HostContract):
        @pytest.fixture
        async def transport(self): ...
        @pytest.fixture
        def root(self): return "/an/absent/folder/on/the/host"

Rules for editing: only what ports.Host promises about steps; each docstring is one sentence of it.
"""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from remote_trainer.errors import Conflict, Fenced, HostWiped, InvariantBroken, NotFound
from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import HostFacts, StepState, Token
from remote_trainer.ports import Ended, Heartbeat, Host, Output, StepSpec, StepStatus, Transport

KEY = "rt-contract-job-a1"
PATIENCE_S = 300.0


async def start(host: Host, facts: HostFacts, name: str, script: str, *, token: int = 1, secret: str = "") -> StepStatus:
    """Start a step with the usual limits."""
    spec = StepSpec(key=name, script=script, secrets={"SECRET": secret} if secret else {}, stop_grace_s=5)
    return await host.start(KEY, Token(token), spec, incarnation=facts.incarnation, deadman_s=600)


async def read_to_end(host: Host, name: str, offset: int = 0) -> tuple[bytes, StepStatus]:
    """Follow a step from an offset to its end."""
    pieces = []
    async with asyncio.timeout(PATIENCE_S), host.follow(KEY, name, offset) as follow:
        async for item in follow:
            match item:
                case Output(data):
                    pieces.append(data)
                case Ended(status):
                    return b"".join(pieces), status
                case Heartbeat():
                    pass
    raise AssertionError("the follow ended without saying how the step did")


class HostContract:
    """The suite."""

    @pytest.fixture
    def transport(self) -> Transport:
        """Return the way to the host; the fixture closes it afterwards."""
        raise NotImplementedError

    @pytest.fixture
    def root(self) -> str:
        """Return an absent folder on the host."""
        raise NotImplementedError

    @pytest.fixture
    def host(self, transport: Transport, root: str) -> Host:
        """Return the host under test."""
        return SupervisedHost(transport, root)

    @pytest.fixture
    async def facts(self, host: Host) -> HostFacts:
        """Return the facts of the host, bootstrapped."""
        return await host.bootstrap("first")

    async def test_bootstrap_keeps_the_first_incarnation(self, host: Host, facts: HostFacts) -> None:
        """A second bootstrap finds what the first has set up, and says what the host is."""
        again = await host.bootstrap("second")
        assert (again.incarnation, again.boot) == ("first", facts.boot)
        assert again.cpus > 0
        assert again.mem_total > 0
        assert 0 < again.disk_free <= again.disk_total

    async def test_a_step_runs_and_tells_its_end(self, host: Host, facts: HostFacts) -> None:
        """Output comes byte for byte, then the end with exit code and size."""
        started = await start(host, facts, "train.1", r"printf 'a\000\377\r50%%\r100%%'; printf err >&2; exit 7")
        log, status = await read_to_end(host, "train.1")
        assert started.state in (StepState.RUNNING, StepState.EXITED)
        assert log == b"a\0\xff\r50%\r100%err"
        assert (status.state, status.exit_code, status.size) == (StepState.EXITED, 7, len(log))

    async def test_a_start_asked_for_twice_is_one_start(self, host: Host, facts: HostFacts) -> None:
        """However often and by how many a start is asked for, the step runs once."""
        asked = await asyncio.gather(*(start(host, facts, "once.1", "echo ran") for _ in range(4)))
        log, _ = await read_to_end(host, "once.1")
        assert (len(asked), log) == (4, b"ran\n")
        assert (await start(host, facts, "once.1", "echo ran")).state is StepState.EXITED

    async def test_script_text_arrives_exactly(self, host: Host, facts: HostFacts) -> None:
        """Quotes, newlines, dollars and 200 kB of text reach the shell as they are."""
        script = f"cat <<'END'\n'\"\\$`é\n{'#' * 200_000}\nEND\n"
        await start(host, facts, "long.1", script)
        await start(host, facts, "short.1", "cat <<'END'\n'\"\\$`é\nEND\n")
        assert (await read_to_end(host, "long.1"))[0] == f"'\"\\$`é\n{'#' * 200_000}\n".encode()
        assert (await read_to_end(host, "short.1"))[0] == "'\"\\$`é\n".encode()

    async def test_follow_from_any_offset(self, host: Host, facts: HostFacts) -> None:
        """A follow that starts at an offset yields exactly the rest, acknowledged or not."""
        await start(host, facts, "seq.1", "seq 1 20000")
        whole, status = await read_to_end(host, "seq.1")
        async with host.follow(KEY, "seq.1", 0) as follow:
            await follow.ack(8192)
        assert whole == b"".join(b"%d\n" % number for number in range(1, 20001))
        for offset in (8192, 8193, status.size - 1, status.size):
            assert (await read_to_end(host, "seq.1", offset))[0] == whole[offset:]

    async def test_a_large_log_is_equal(self, host: Host, facts: HostFacts) -> None:
        """Twenty million bytes arrive in order, none lost, none doubled."""
        await start(host, facts, "flood.1", "seq 1 2700000 | head -c 20000000")
        log, status = await read_to_end(host, "flood.1")
        expected = "".join(f"{number}\n" for number in range(1, 2_700_001)).encode()[:20_000_000]
        assert (hashlib.sha256(log).hexdigest(), status.size) == (hashlib.sha256(expected).hexdigest(), 20_000_000)

    async def test_lines_come_while_the_step_runs(self, host: Host, facts: HostFacts) -> None:
        """Output is handed on when it is written, not when the step ends."""
        await start(host, facts, "live.1", 'echo one; while [ ! -e "$RT_WORK/go" ]; do sleep 0.05; done; echo two')
        async with asyncio.timeout(PATIENCE_S), host.follow(KEY, "live.1", 0) as follow:
            items = aiter(follow)
            assert await anext(items) == Output(b"one\n")
            assert (await host.status(KEY, ["live.1"]))["live.1"].state is StepState.RUNNING
            await start(host, facts, "go.1", 'touch "$RT_WORK/go"')
            assert await anext(items) == Output(b"two\n")

    async def test_secrets_reach_only_the_step(self, host: Host, facts: HostFacts) -> None:
        """A secret is in the step's environment, newlines included, and not in that of the next step."""
        await start(host, facts, "with.1", 'printf %s "$SECRET"', secret="line one\nline 'two'\n")  # noqa: S106 # made up
        await start(host, facts, "without.1", 'printf %s "${SECRET:-none}"')
        assert (await read_to_end(host, "with.1"))[0] == b"line one\nline 'two'\n"
        assert (await read_to_end(host, "without.1"))[0] == b"none"

    async def test_status_of_many(self, host: Host, facts: HostFacts) -> None:
        """One call tells of all steps; one that never started is NONE; asking for nothing is free."""
        await start(host, facts, "done.1", "exit 3")
        await read_to_end(host, "done.1")
        states = await host.status(KEY, ["done.1", "never.1"])
        assert (states["done.1"].exit_code, states["never.1"].state) == (3, StepState.NONE)
        assert await host.status(KEY, []) == {}

    async def test_cancel_before_the_start(self, host: Host, facts: HostFacts) -> None:
        """A cancelled step can never start, and its follow ends at once."""
        assert (await host.cancel(KEY, "never.1", Token(1))).state is StepState.CANCELLED
        assert (await start(host, facts, "never.1", "echo no")).state is StepState.CANCELLED
        log, status = await read_to_end(host, "never.1")
        assert (log, status.state) == (b"", StepState.CANCELLED)

    async def test_cancel_after_the_start(self, host: Host, facts: HostFacts) -> None:
        """A cancel that comes too late changes nothing and says so."""
        await start(host, facts, "late.1", "exit 4")
        await read_to_end(host, "late.1")
        assert (await host.cancel(KEY, "late.1", Token(1))).exit_code == 4

    async def test_stop_ends_the_whole_tree(self, host: Host, facts: HostFacts) -> None:
        """Stop reaches children that ignore TERM and those that left for a session of their own."""
        script = "trap '' TERM; setsid sh -c \"trap '' TERM; while :; do sleep 0.1; done\" & echo up; while :; do sleep 0.1; done"
        await start(host, facts, "tree.1", script)
        stopping = await host.stop(KEY, "tree.1", Token(1), grace_s=1)
        _, status = await read_to_end(host, "tree.1")
        assert (stopping.state, status.state) == (StepState.RUNNING, StepState.EXITED)
        assert status.why.startswith("stop")

    async def test_an_older_token_is_refused(self, host: Host, facts: HostFacts) -> None:
        """Once a newer token was seen, starts, stops, cancels and cleaning with an older one raise Fenced."""
        await host.cancel(KEY, "x.1", Token(5))
        with pytest.raises(Fenced):
            await start(host, facts, "y.1", "echo no", token=4)
        with pytest.raises(Fenced):
            await host.stop(KEY, "x.1", Token(4), grace_s=1)
        with pytest.raises(Fenced):
            await host.clean(KEY, Token(4))

    async def test_another_incarnation_is_refused(self, host: Host, facts: HostFacts) -> None:
        """A start meant for a disk that was wiped since raises HostWiped and starts nothing."""
        with pytest.raises(HostWiped):
            await host.start(KEY, Token(1), StepSpec(key="x.1", script="echo"), incarnation="other", deadman_s=600)
        assert (await host.status(KEY, ["x.1"]))["x.1"].state is StepState.NONE

    async def test_a_wiped_host_is_told(self, host: Host, transport: Transport, root: str, facts: HostFacts) -> None:
        """When the folder of the supervisor is gone, every question raises HostWiped."""
        await transport.run(["rm", "-rf", root])
        with pytest.raises(HostWiped):
            await host.status(KEY, ["x.1"])
        with pytest.raises(HostWiped):
            async with host.follow(KEY, "x.1", 0):
                pass

    async def test_another_version_meets_its_hosts(self, host: Host, transport: Transport, root: str, facts: HostFacts) -> None:
        """A host that another version of us has set up gets our scripts with the first question, steps and all unharmed."""
        await start(host, facts, "old.1", "exit 9")
        await read_to_end(host, "old.1")
        for ask in (lambda: host.status(KEY, ["old.1"]), lambda: read_to_end(host, "old.1")):
            await transport.run(["sh", "-c", 'rm "$1"/bin/*', "sh", root])
            await ask()
        assert (await host.status(KEY, ["old.1"]))["old.1"].exit_code == 9

    async def test_follow_of_what_never_started(self, host: Host, facts: HostFacts) -> None:
        """Following a step that nobody starts raises NotFound."""
        with pytest.raises(NotFound):
            async with host.follow(KEY, "never.1", 0):
                pass

    async def test_clean(self, host: Host, facts: HostFacts) -> None:
        """Cleaning is refused while a step runs (Conflict), keeps the fence, and can be repeated."""
        await start(host, facts, "runs.1", "sleep 600", token=3)
        with pytest.raises(Conflict):
            await host.clean(KEY, Token(3))
        await host.stop(KEY, "runs.1", Token(3), grace_s=1)
        await read_to_end(host, "runs.1")
        await host.clean(KEY, Token(3))
        await host.clean(KEY, Token(3))
        assert (await host.status(KEY, ["runs.1"]))["runs.1"].state is StepState.NONE
        with pytest.raises(Fenced):
            await host.clean(KEY, Token(2))

    async def test_names_that_are_no_names(self, host: Host, facts: HostFacts) -> None:
        """A key or step that would leave its folder is refused by the host itself."""
        for key, step in (("../x", "a.1"), (KEY, "../../x"), (KEY, "-n"), ("", "a.1")):
            with pytest.raises(InvariantBroken):
                await host.cancel(key, step, Token(1))
