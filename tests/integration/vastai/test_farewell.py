"""A machine that ends itself with the key that it finds on itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.vast.server import SimVast
from tests.integration.vastai.ground import rent
from tests.support.patience import PATIENCE_S


@pytest.fixture
def only(tmp_path: Path) -> Callable[[str], str]:
    """A PATH with the small tools and one program that can ask."""

    def make(program: str) -> str:
        folder = tmp_path / f"path-{program}"
        folder.mkdir()
        for name in ("tr", "sed", "head", "tail", "rm", "mktemp", program):
            found = os.path.realpath(sys.executable) if name == "python3" else shutil.which(name)
            if found is None:
                pytest.skip(f"{name} is not installed")
            (folder / name).symlink_to(found)
        return str(folder)

    return make


def bid_farewell(
    driver: VastDriver, environment: Mapping[str, str], shell: Sequence[str] = ("/bin/sh",)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shell, "-s"],
        input=driver.farewell,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("program", ["curl", "python3", "wget"])
async def test_a_machine_ends_itself(
    sim: SimVast, driver: VastDriver, only: Callable[[str], str], program: str, tmp_path: Path
) -> None:
    """With its own number and key, from files or the environment; what is gone already is fine, and the account's key is not there."""
    path = only(program)
    _, made = await rent(driver)
    kept = sim.live[int(made.id)]
    home = tmp_path / "home"
    home.mkdir()
    (home / ".vast_containerlabel").write_text(f"C.{made.id}")
    (home / ".vast_api_key").write_text(kept.api_key)
    done = bid_farewell(driver, {"PATH": path, "HOME": str(home)})
    assert (done.returncode, done.stderr) == (0, "")
    assert kept.ended_at is not None
    sim.clock.advance(60)
    assert await driver.instances("") == []
    again = bid_farewell(driver, {"PATH": path, "CONTAINER_ID": made.id, "CONTAINER_API_KEY": kept.api_key})
    assert again.returncode == 0, again.stderr
    assert sim.key not in driver.farewell


@pytest.mark.shells
@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
async def test_any_shell_will_do(sim: SimVast, driver: VastDriver, shell: str) -> None:
    """Images bring the one they like."""
    _, made = await rent(driver)
    key = sim.live[int(made.id)].api_key
    environment = {"PATH": os.environ["PATH"], "CONTAINER_ID": made.id, "CONTAINER_API_KEY": key}
    done = bid_farewell(driver, environment, shell.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sim.live[int(made.id)].ended_at is not None


@pytest.mark.parametrize("program", ["curl", "python3", "wget"])
async def test_a_refused_farewell_is_no_success(
    sim: SimVast, driver: VastDriver, only: Callable[[str], str], program: str
) -> None:
    """A wrong key is answered with 404 as well; limits and failures are no end either, and no message carries the key."""
    path = only(program)
    _, made = await rent(driver)
    environment = {"PATH": path, "CONTAINER_ID": made.id, "CONTAINER_API_KEY": "f" * 64}
    wrong = bid_farewell(driver, environment)
    assert wrong.returncode == 1 and "Invalid user key" in wrong.stderr and "f" * 64 not in wrong.stderr
    for fault in ("destroy-500", "destroy-429"):
        sim.faults.arm(fault)
        refused = bid_farewell(driver, {**environment, "CONTAINER_API_KEY": sim.live[int(made.id)].api_key})
        assert refused.returncode == 1
    assert sim.live[int(made.id)].ended_at is None


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, '{"success": true}', 0),
        (200, '{"success": false, "msg": "no"}', 1),
        (404, '{"error": "no_such_instance"}', 0),
        (404, "page not found", 1),
        (302, "", 1),
    ],
)
def test_what_counts_as_accepted(settings: DriverSettings, only: Callable[[str], str], status: int, body: str, code: int) -> None:
    """The words decide, not the status alone."""

    class Odd(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(server.serve_forever, 0.05)
        driver = VastDriver({"url": f"http://127.0.0.1:{server.server_port}"}, settings)
        for program in ("curl", "python3", "wget"):
            done = bid_farewell(driver, {"PATH": only(program), "CONTAINER_ID": "7", "CONTAINER_API_KEY": "abc"})
            assert done.returncode == code, (program, done.stderr)
        server.shutdown()
        serving.result()


@pytest.mark.parametrize("odd", [{"CONTAINER_ID": "7; rm -rf /"}, {"CONTAINER_API_KEY": 'x"\nurl = "http://elsewhere'}])
def test_a_machine_with_odd_words_about_itself_asks_nobody(sim: SimVast, driver: VastDriver, odd: dict[str, str]) -> None:
    """What the machine says of itself becomes an address and a header: only digits and plain letters do."""
    whole = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "CONTAINER_ID": "7", "CONTAINER_API_KEY": "abc"}
    done = bid_farewell(driver, {**whole, **odd})
    assert done.returncode == 2
    assert sim.requests == []
