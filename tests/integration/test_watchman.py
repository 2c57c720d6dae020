"""The watchman ends a machine that everybody has left, and no other one: what it takes for that, under each shell, side by side."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import pytest

from remote_trainer.config import S3Settings
from remote_trainer.model import JobId
from remote_trainer.objects.open import open_objects
from remote_trainer.ports import Outbox as ObjectsOutbox
from remote_trainer.worker import records
from tests.integration.supervisor_host import PATIENCE, Host, Kind, Reply, eventually, running, running_small
from tests.support.s3 import S3Bucket

pytestmark = pytest.mark.shells
SHELLS = [Kind("dash"), Kind("bash"), Kind("busybox")]
WATCHMAN = Path(__file__).parents[2] / "remote_trainer" / "host" / "watchman.sh"
NEVER = 3600
TO_COME = 4_000_000_000  # a time of the wall clock


class Rented:
    """A machine that can end itself; how often it did is in a file out of its reach."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.left = host.folder / "left"
        self.gate = host.folder / "closed"  # while it is there the provider refuses
        self.variables: dict[str, str] = {}

    def keep(self, *, silence: int = 1, hold: int = NEVER, limit: int = 0, outbox: str = "", cut: int | None = None) -> Reply:
        """A worker's call, as the worker's other calls leaves a word."""
        farewell = f"[ ! -e {self.gate} ] || {{ echo no >>{self.gate}; echo refused >&2; exit 1; }}; echo bye >>{self.left}"
        orders = {"FAREWELL": farewell, "OUTBOX": outbox}
        lines = [f"{name}={base64.b64encode(value.encode()).decode()}" for name, value in orders.items() if value]
        text = "\n".join([*lines, ".", ""]).encode()
        process = self.call("keep", "job", silence, hold, limit)
        out, err = process.communicate(text[:cut], timeout=PATIENCE)
        return Reply(process.returncode, out.decode(), err.decode())

    def call(self, *words: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.host.folder / "bin" / "sh"), str(WATCHMAN), *map(str, words)],
            env=self.host.environment(**self.variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def gone(self) -> bool:
        return self.left.exists()

    def watchmen(self) -> list[int]:
        """Those that lead a session; its children do not."""
        found = []
        for pid in self.host.processes(b"RT_WATCH==job="):
            with suppress(ProcessLookupError):
                found += [pid] if os.getsid(pid) == pid else []
        return found

    def run_to_end(self, script: str) -> None:
        self.host.begin("job", "s.1", script)
        self.host.end_of("job", "s.1")

    def word(self) -> None:
        self.host.ok("touch", "job")

    def wait_until_gone(self) -> None:
        eventually(lambda: self.gone, f"the end of {self.log()}")

    def log(self) -> str:
        path = self.host.root / "watchman.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def rented(kind: Kind) -> Iterator[Rented]:
    with running(kind) as host:
        yield Rented(host)


OUTPUT = 'mkdir -p "$RT_WORK/output" && echo weights >"$RT_WORK/output/w"'


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_only_what_everybody_has_left_ends(kind: Kind) -> None:
    """Silence ends a machine whose step has ended, not one whose step runs; over its limit it ends whatever runs."""
    with ExitStack() as stack:
        done, over, busy = (stack.enter_context(rented(kind)) for _ in range(3))
        done.run_to_end("exit 3")
        for each in (over, busy):
            each.host.begin("job", "s.1", "sleep 3600")
        assert [busy.keep().out, done.keep().out, over.keep(silence=10, limit=1).out] == ["ok\n"] * 3
        done.wait_until_gone()
        over.wait_until_gone()
        assert not busy.gone
        busy.host.ok("stop", "job", "s.1", 1, 0)
        busy.wait_until_gone()


def test_words_and_results_keep_a_machine() -> None:
    """What never started is ended, and what is done, whatever the clock says; not who is spoken to, nor where results would be lost."""
    eventually(words_and_results, "a round in which every word was in time")


def words_and_results() -> bool:
    """Tell whether every word was in time; what came of one that was late would prove nothing."""
    within_s, longest = 3, 0.0
    with ExitStack() as stack:
        bare, jumped, results, spoken = (stack.enter_context(rented(Kind("dash"))) for _ in range(4))
        jumped.run_to_end("exit 0")
        os.utime(jumped.host.root / "j/job/lease", (TO_COME, TO_COME))
        results.run_to_end(OUTPUT)
        spoken.run_to_end("exit 0")
        said = time.monotonic()
        for each in (results, spoken, jumped, bare):  # who is to be kept has been silent for the longest time
            each.keep(silence=within_s if each is spoken else 1)
        while not (bare.gone and jumped.gone):
            asked = time.monotonic()
            spoken.word()
            said, longest = asked, max(longest, time.monotonic() - said)
        kept = not spoken.gone
        assert not results.gone
        if max(longest, time.monotonic() - said) >= within_s:
            return False
        assert kept
        spoken.wait_until_gone()
        return True


@pytest.mark.fault("host-disk-full")
def test_a_full_disk_keeps_nothing_alive() -> None:
    """Neither room for a byte nor for a file is needed to be set up, nor to end the machine."""
    with ExitStack() as stack:
        machines = [Rented(stack.enter_context(running_small(kind, "256k", names=150))) for kind in SHELLS]
        for machine in machines:
            machine.run_to_end("exit 0")
            fill = f"cd {machine.host.root} && touch $(seq 200); cat /dev/zero >1"
            subprocess.run(fill, shell=True, capture_output=True)
            assert machine.keep().out == "ok\n"
        for machine in machines:
            machine.wait_until_gone()


@pytest.mark.parametrize("kind", SHELLS, ids=str)
def test_there_is_one_watchman_until_its_job_is_cleaned_away(kind: Kind) -> None:
    """Of many calls at once one watchman stays; one that was killed is replaced by the next word; `clean` ends it."""
    with rented(kind) as machine:
        callers = [threading.Thread(target=machine.keep, kwargs={"silence": NEVER}) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        (first,) = eventually(lambda: (found := machine.watchmen()) and len(found) == 1 and found, "one watchman") or ()
        assert machine.keep(silence=NEVER, cut=-3).code == 78
        assert machine.watchmen() == [first]
        assert machine.keep(silence=NEVER).out == "ok\n"
        (second,) = machine.watchmen()
        assert second != first
        os.kill(second, signal.SIGKILL)
        eventually(lambda: machine.watchmen() == [], "its end")
        assert machine.keep(silence=NEVER).out == "ok\n"
        (third,) = machine.watchmen()
        assert os.readlink(f"/proc/{third}/cwd") == "/"
        machine.host.ok("clean", "job", 1)
        eventually(lambda: machine.watchmen() == [], "its end")
    assert not machine.gone


def test_a_provider_that_refuses_is_asked_again() -> None:
    """The farewell is repeated until the machine is gone, and given up when a worker is back."""
    with rented(Kind("dash")) as machine:
        machine.gate.touch()
        machine.keep()
        eventually(lambda: machine.gate.read_text().count("no") >= 2, "a second farewell")
        machine.keep(silence=NEVER)
        machine.gate.unlink()
        assert not machine.gone
        machine.keep()
        machine.wait_until_gone()
        assert "the farewell failed: refused" in machine.log(), machine.log()


class Outbox(ThreadingHTTPServer):
    """Takes what is PUT; answers when the test has looked around."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.arrived: Queue[bytes] = Queue()
        self.answers: Queue[int] = Queue()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/bucket/farewell.tar?X-Amz-Signature=s3cret&b=%20"


class _Taker(BaseHTTPRequestHandler):
    server: Outbox

    def do_PUT(self) -> None:
        assert self.path == "/bucket/farewell.tar?X-Amz-Signature=s3cret&b=%20"
        assert "Transfer-Encoding" not in self.headers  # no bucket takes that
        self.server.arrived.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.server.answers.get(timeout=PATIENCE))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Says nothing."""


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    with Outbox() as server:
        yield server
        server.shutdown()


def unpacked(tar: bytes) -> dict[str, bytes]:
    """The files in a tar file."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {each.name: (file.read() if (file := archive.extractfile(each)) else b"") for each in archive if each.isfile()}


def test_outputs_go_into_the_outbox_first(outbox: Outbox) -> None:
    """The outputs are put there whole, with a refusal once more; then the machine ends; nobody on it sees the address meanwhile."""
    with rented(Kind("busybox")) as machine:
        (machine.host.folder / "bin/python3").symlink_to(sys.executable)  # no curl there
        machine.run_to_end(
            f'{OUTPUT}; mkdir "$RT_WORK/output/step 2"; head -c 300000 /dev/urandom >"$RT_WORK/output/step 2/state"'
        )
        machine.keep(outbox=outbox.url)
        refused = outbox.arrived.get(timeout=PATIENCE)
        assert not machine.gone
        for pid in machine.host.processes():
            for what in ("cmdline", "environ"):
                assert b"s3cret" not in Path(f"/proc/{pid}/{what}").read_bytes()
        outbox.answers.put(403)
        whole = outbox.arrived.get(timeout=PATIENCE)
        outbox.answers.put(200)
        machine.wait_until_gone()
        assert refused == whole
        output = machine.host.work("job") / "output"
        assert unpacked(whole) == {f"output/{name}": (output / name).read_bytes() for name in ("w", "step 2/state")}
        files = [each.read_bytes() for each in machine.host.root.rglob("*") if each.is_file()]
        assert not any(b"s3cret" in each for each in files)


async def test_a_bucket_takes_the_outputs(s3_bucket: S3Bucket) -> None:
    """A machine without credentials puts them where the next worker can see them, and where no artifact is taken to be."""
    server = s3_bucket.server
    objects = open_objects(f"s3://{s3_bucket.bucket}/some", S3Settings.model_validate(server.access))
    assert isinstance(objects, ObjectsOutbox)
    key = records.outbox_key("default", JobId("j1"), 3)
    assert records.path_of(key, records.files_prefix("default", JobId("j1"), 3)) is None
    with rented(Kind("dash")) as machine:
        machine.variables["CURL_CA_BUNDLE"] = str(server.ca_bundle)
        machine.run_to_end(OUTPUT)
        machine.keep(outbox=await objects.presign_put(key, expires_s=60))
        machine.wait_until_gone()
        taken = server.client().get_object(Bucket=s3_bucket.bucket, Key=f"some/{key}")["Body"].read()
        assert unpacked(taken) == {"output/w": b"weights\n"}
