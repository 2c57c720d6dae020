"""The log arrives whole: every byte once and in order, over any number of connections, and the end is told only when it is final."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.supervisor_host import KINDS, PATIENCE, Follower, Host, Kind, eventually, running, without_notes

pytestmark = pytest.mark.shells


@pytest.fixture(params=KINDS, ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    kind: Kind = request.param
    with running(kind) as host:
        yield host


def test_bytes_pass_as_they_are(host: Host) -> None:
    """All 256 byte values, a character split over two writes, progress lines with carriage returns, no newline at the end."""
    every_byte = b"".join(f"\\{value:03o}".encode() for value in range(256)).decode()
    script = f"printf '{every_byte}'; printf '\\303'; sleep 0.1; printf '\\251\\r 10%%\\r 20%%\\r100%%'"
    host.begin("job", "s.1", script)
    follower = Follower(host, "job", "s.1")
    assert follower.to_the_end() == bytes(range(256)) + "é\r 10%\r 20%\r100%".encode()


def test_a_log_is_put_together_from_many_connections(host: Host) -> None:
    """Followers that are killed at random and take up where the last one stopped hold the very bytes of the file."""
    gate = f"until [ -e {host.folder}/gate$i ]; do sleep 0.02; done"
    host.begin("job", "s.1", f"for i in 1 2 3 4; do head -c 20000 /dev/urandom; {gate}; done; printf end")
    log = b""
    for i in range(1, 5):
        follower = Follower(host, "job", "s.1", len(log))
        follower.wait_for(random.randint(1, i * 20_000 - len(log)) if len(log) < i * 20_000 else 0)
        (host.folder / f"gate{i}").touch()
        log += follower.cut()
    log += Follower(host, "job", "s.1", len(log)).to_the_end()
    assert log == host.log("job", "s.1")
    assert len(log) == 80_003 and log.endswith(b"end")


@pytest.mark.parametrize("kind", [Kind("dash"), Kind("busybox")], ids=str)
def test_a_hundred_megabytes_arrive_whole(kind: Kind) -> None:
    """A big log, over two connections, while it is being written."""
    size = 100 << 20
    with running(kind) as host:
        host.begin("job", "s.1", f"head -c {size} /dev/urandom")
        first = Follower(host, "job", "s.1")
        first.wait_for(size // 3)
        start = first.cut()
        rest = Follower(host, "job", "s.1", len(start)).to_the_end()
        assert len(start) + len(rest) == size
        assert hashlib.sha256(start + rest).digest() == hashlib.sha256(host.log("job", "s.1")).digest()


def test_the_end_comes_once_and_after_the_last_byte_is_written(host: Host) -> None:
    """What a daemon of the step writes after the step itself has ended still counts: X waits for the log to be final."""
    host.begin("job", "s.1", "(trap 'echo late; exit' TERM; while :; do sleep 0.05; done) & sleep 0.1; echo early; exit 5")
    follower = Follower(host, "job", "s.1")
    assert without_notes(follower.to_the_end()) == b"early\nlate\n"
    assert [line for line in follower.lines if line.startswith("X ")] == [follower.line("X exited code=5 ")]


def test_pings_are_answered_with_what_is_new(host: Host) -> None:
    """H tells how much log there is, how large the file asked for is, and another word after each change of the outputs."""
    host.begin("job", "s.1", f"printf 12345; until [ -e {host.folder}/go ]; do sleep 0.02; done; exit 3")
    host.wait_for_log("job", "s.1", b"12345")
    follower = Follower(host, "job", "s.1", 5)
    assert follower.line("C ").startswith("C n=n1 f=1 pid=")
    follower.say("P metrics.jsonl")
    assert follower.line("H ") == "H 5 0 -"
    work = host.work("job")
    (work / "metrics.jsonl").write_text("{}\n")
    (work / "output/samples").mkdir(parents=True)
    (work / "output/samples/1.png").write_text("1")
    follower.say("P metrics.jsonl")
    first = follower.line("H 5 3 ")
    (work / "output/samples/1.png").write_text("2 ")
    (work / "metrics.jsonl").write_text("{}\n{}\n")
    follower.say("P metrics.jsonl")
    assert follower.line("H 5 6 ").split()[3] not in ("-", first.split()[3])
    follower.say("nonsense")
    follower.say("A nonsense")
    follower.say("A 3$(id)")
    (work / "metrics.jsonl").unlink()
    (work / "metrics.jsonl").mkdir()
    follower.say("P output/samples/1.png")
    follower.line("H 5 2 ")
    (host.folder / "go").touch()
    assert follower.to_the_end() == b""
    assert follower.process.returncode == 0


def test_an_acknowledged_prefix_is_freed(host: Host) -> None:
    """The file shrinks on the disk, its offsets stay, and what was not acknowledged is still there."""
    if host.kind.shell == "busybox":
        pytest.xfail("busybox has no fallocate that punches holes: there the log stays whole")
    host.begin("job", "s.1", "head -c 4000000 /dev/urandom; printf the-end")
    Follower(host, "job", "s.1").to_the_end()
    (attempt,) = host.attempts("job", "s.1")
    whole = host.log("job", "s.1")
    follower = Follower(host, "job", "s.1", 3_500_000)
    follower.say("A 3500000")
    eventually(lambda: (attempt / "log").stat().st_blocks * 512 < 600_000, "the hole")
    assert follower.to_the_end() == whole[3_500_000:]
    assert (attempt / "log").stat().st_size == len(whole)


def test_a_follower_leaves_nothing_behind(host: Host) -> None:
    """Neither when its client closes, nor when the connection is cut, does a process of it stay."""
    host.begin("job", "s.1", f"echo hi; until [ -e {host.folder}/go ]; do sleep 0.02; done")
    before = len(host.processes())
    closed, cut = Follower(host, "job", "s.1"), Follower(host, "job", "s.1")
    closed.wait_for(3)
    cut.wait_for(3)
    assert closed.close() == 0
    cut.process.terminate()
    cut.process.wait(PATIENCE)
    eventually(lambda: len(host.processes()) <= before, "the end of the followers")
    cut.cut()
    assert not list((host.step_folder("job", "s.1") / "a.n1").glob("f.*"))


def test_a_silent_client_is_taken_for_dead(host: Host) -> None:
    """A half-open connection never closes its end; without pings the follower goes by itself, before the end of the step and after."""
    text = host.script.read_text()
    host.script.write_text(text.replace("FOLLOWER_SILENCE=120", "FOLLOWER_SILENCE=1"))
    host.begin("job", "long", f"until [ -e {host.folder}/go ]; do sleep 0.02; done")
    host.begin("job", "short", "exit 0", nonce="n2")
    host.end_of("job", "short")
    followers = [Follower(host, "job", "long"), Follower(host, "job", "short")]
    followers[1].line("X exited code=0 ")
    # A live step is looked at every 20 s while there is nothing to tell; its end is one more occasion to look.
    eventually(lambda: followers[1].process.poll() is not None, "the end of the silent follower")
    assert followers[0].process.poll() is None or followers[0].lines
    for follower in followers:
        follower.cut()


def test_following_may_begin_before_the_start(host: Host) -> None:
    """A new owner may be quicker than the old one's start; it is not told "no such step" for that."""
    follower = Follower(host, "job", "s.1")
    host.begin("job", "s.1", "echo hi")
    assert follower.to_the_end() == b"hi\n"


def test_a_step_nobody_starts_cannot_be_followed() -> None:
    """After a few seconds the answer is 77."""
    with running(KINDS[0]) as host:
        reply = host.run("follow", "job", "s.1", 0)
        assert (reply.code, reply.err) == (77, "E not started: job s.1\n")


def test_a_cancelled_step_ends_its_followers(host: Host) -> None:
    """There is no log, but there is an end."""
    host.ok("cancel", "job", "s.1", 4)
    follower = Follower(host, "job", "s.1")
    assert follower.line("X ") == "X cancelled f=4"
    follower.close()


def test_a_step_may_close_its_output(host: Host) -> None:
    """Its exit code is told all the same."""
    host.begin("job", "s.1", "echo hi; exec >&- 2>&-; sleep 0.1; exit 4")
    assert Follower(host, "job", "s.1").to_the_end() == b"hi\n"
    assert host.end_of("job", "s.1").startswith("exited code=4 size=3 ")


def test_followers_do_not_hold_the_start_up(host: Host) -> None:
    """A launch answers when the claim is on disk, not when the step ends."""
    process = host.popen("launch", "job", "s.1", 1, "inc1", "n1", 1, 0, f"until [ -e {host.folder}/go ]; do sleep 0.02; done")
    out, _ = process.communicate(timeout=PATIENCE)
    assert out.startswith(b"started ")
    assert host.state("job", "s.1").startswith("running ")
    subprocess.run(["touch", str(host.folder / "go")], check=True)
    assert host.end_of("job", "s.1").startswith("exited code=0 ")


@pytest.mark.fault("no-inotify")
@pytest.mark.parametrize("kind", [Kind("dash"), Kind("bash")], ids=str)  # busybox's tail never asks for one
def test_a_log_is_followed_where_no_inotify_instance_is_left(kind: Kind) -> None:
    """A host with more followed steps than it allows: the sender looks by itself, every byte comes, and nothing else is said."""
    with running(kind) as host:
        gate = f"until [ -e {host.folder}/gate$i ]; do sleep 0.02; done"
        host.begin("job", "s.1", f"for i in 1 2 3; do head -c 20000 /dev/urandom; {gate}; done; printf end; exit 3")
        without = "echo 0 >/proc/sys/user/max_inotify_instances && exec sh "
        real, host.script = host.script, host.folder / "without.sh"
        host.script.write_text(f'exec unshare --user --map-root-user sh -c \'{without} {real} "$@"\' sh "$@"\n')
        log = b""
        for part in range(1, 4):
            follower = Follower(host, "job", "s.1", len(log))
            follower.wait_for(part * 20_000 - len(log))
            (host.folder / f"gate{part}").touch()
            log += follower.to_the_end() if part == 3 else follower.cut()
        host.script = real
        assert log == host.log("job", "s.1")
        assert follower.line("X ").startswith("X exited code=3 ")
