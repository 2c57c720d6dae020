"""What every test runs in: a scrubbed environment, no network but loopback, and real parts where the machine has them.

Fixtures named after a part (`sshd`, `mongo_server`, `s3_server`) are shared by the tests of a process: use them, do not break them.
`own_…` and `start_…` belong to one test, which may stop, cut and kill them. Asking for one marks the test as part of its suite.

Rules for editing: fixtures only hand out what tests/support builds; whether a part exists is decided in tests/support/suites.py,
never in a test.
"""

from __future__ import annotations

from tests.support import environment

HOME = environment.scrub()

import shutil  # noqa: E402 - libraries read the environment when they are imported
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.support import containers, evidence, mongo, network, s3, suites  # noqa: E402
from tests.support import sshd as ssh_servers  # noqa: E402
from tests.support.containers import ContainerHost, Fleet  # noqa: E402
from tests.support.mongo import MongoServer  # noqa: E402
from tests.support.s3 import S3Bucket, S3Server  # noqa: E402
from tests.support.sshd import SshdServer  # noqa: E402

# The cheapest first, but trainings last: small files that only compute fill the processes while the long waits of e2e end.
_FOLDERS = ("unit", "sim", "contract", "integration", "e2e", "train")
_LEFT_OUT, _NOT_ASKED_FOR = "left out", "not asked for"
_RUNS_BEFORE = pytest.StashKey[int]()
_TALLIES = pytest.StashKey[dict[tuple[str, str], evidence.Tally]]()


def pytest_configure(config: pytest.Config) -> None:
    for suite in suites.CHECKS:
        config.addinivalue_line("markers", f"{suite}: left out where its real part is missing")
    config.addinivalue_line("markers", "fault(name): tries to break promises in that way; names are in tests/support/evidence.py")
    config.stash[_TALLIES] = {}
    network.block()


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order by cost, and mark each test by the real parts it asks for, so that `-m sshd` finds them all."""
    items.sort(key=lambda item: _cost(config, item))
    for item in items:
        for suite in suites.needed_by(getattr(item, "fixturenames", ())):
            item.add_marker(suite)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a test whose part is missing; the check runs once per suite. One that costs money is left out unless it is asked for."""
    if item.get_closest_marker("live") and (reason := suites.not_asked_for()):
        item.user_properties.append((_NOT_ASKED_FOR, reason))
        pytest.skip(reason)
    for suite in suites.CHECKS:
        if item.get_closest_marker(suite) and (reason := suites.missing(suite)):
            item.user_properties.append((_LEFT_OUT, suite))
            pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that names a fault is one run of it, unless it counts its runs itself; one that fails has broken a promise."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    tally = _tally(item)
    if tally is None:
        return
    if report.when == "setup":
        item.stash[_RUNS_BEFORE] = tally.runs
        return
    if report.when == "call" and not report.skipped and tally.runs == item.stash[_RUNS_BEFORE]:
        tally.ran()
    if report.failed:
        tally.violations += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    evidence.keep(list(session.config.stash[_TALLIES].values()))
    if suites.REQUIRE_ALL and _left_out(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = _left_out(config)
    if not left_out:
        return
    terminalreporter.section("left out")
    for what, reason in sorted(left_out.items()):
        terminalreporter.line(f"left out: {what}: {reason}")
    if suites.REQUIRE_ALL:
        terminalreporter.line("FAILED: REMOTE_TRAINER_REQUIRE_ALL=1 lets nothing be left out", red=True)


def _left_out(config: pytest.Config) -> dict[str, str]:
    """What was not run, a suite or a single test, and why: from the reports, which processes side by side send to the first one."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    told = [(dict(getattr(report, "user_properties", ())), report) for report in skipped]
    return {about.get(_LEFT_OUT, report.nodeid): _reason(report) for about, report in told if _NOT_ASKED_FOR not in about}


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")


def _tally(item: pytest.Item) -> evidence.Tally | None:
    """Return what counts the runs of the fault a test names."""
    mark = item.get_closest_marker("fault")
    if mark is None:
        return None
    fault, where = mark.args[0], item.path.relative_to(item.config.rootpath).as_posix()
    assert fault in evidence.FAULTS, f"no such fault: {fault}"
    return item.config.stash[_TALLIES].setdefault((fault, where), evidence.Tally(fault, where))


def _cost(config: pytest.Config, item: pytest.Item) -> tuple[int, float]:
    """Order by folder; of a folder, first what may take longest, so that no process works on alone at the end."""
    folder = item.path.relative_to(config.rootpath / "tests").parts[0]
    timeout = item.get_closest_marker("timeout")
    place = _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS)
    return place, -float(timeout.args[0]) if timeout and timeout.args else 0.0


@pytest.fixture(name="evidence")
def _evidence(request: pytest.FixtureRequest) -> evidence.Tally:
    """Counts the runs and recoveries of a test that names a fault."""
    tally = _tally(request.node)
    assert tally is not None, "only a test marked with its fault has evidence to give"
    return tally


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdServer]:
    """An OpenSSH server."""
    with ssh_servers.running(ssh_servers.prepare(tmp_path_factory.mktemp("sshd") / "server")) as server:
        yield server


@pytest.fixture
def start_sshd(tmp_path: Path) -> Iterator[Callable[..., SshdServer]]:
    """Starts OpenSSH servers; takes the options of `sshd.prepare`."""
    with ExitStack() as stack:
        number = iter(range(1000))

        def start(**options: object) -> SshdServer:
            server = ssh_servers.prepare(tmp_path / f"sshd{next(number)}", **options)  # type: ignore[arg-type]
            return stack.enter_context(ssh_servers.running(server))

        yield start


@pytest.fixture
def own_sshd(start_sshd: Callable[..., SshdServer]) -> SshdServer:
    """An OpenSSH server that the test may break."""
    return start_sshd()


@pytest.fixture(scope="session")
def container_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The engine and network behind `start_container`."""
    with containers.fleet(tmp_path_factory.mktemp("containers")) as fleet:
        yield fleet


@pytest.fixture
def start_container(container_fleet: Fleet) -> Iterator[Callable[..., ContainerHost]]:
    """Starts containers; takes the options of `Fleet.launch`."""
    with ExitStack() as stack:

        def start(**options: object) -> ContainerHost:
            host = container_fleet.launch(**options)  # type: ignore[arg-type]
            stack.callback(host.remove)
            return host

        yield start


@pytest.fixture(scope="session")
def shared_container(container_fleet: Fleet) -> ContainerHost:
    """A host with a disk of its own; take a folder of your own on it."""
    return container_fleet.launch()


@pytest.fixture
def container_host(start_container: Callable[..., ContainerHost]) -> ContainerHost:
    """A host with an address of its own: cut it off, restart it, kill it."""
    return start_container()


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """A server that speaks MongoDB's protocol; take a database of your own in it."""
    with mongo.running(tmp_path_factory.mktemp("mongo")) as server:
        yield server


@pytest.fixture(scope="session")
def mongo_uri(request: pytest.FixtureRequest) -> str:
    """Where to connect: the shared server, or the real one of REMOTE_TRAINER_TEST_MONGODB."""
    return mongo.REAL_URI or request.getfixturevalue("mongo_server").shared_uri


@pytest.fixture
def own_mongo(tmp_path: Path) -> Iterator[MongoServer]:
    """A server that the test may kill; its data stays."""
    (tmp_path / "mongo").mkdir()
    with mongo.running(tmp_path / "mongo") as server:
        yield server


@pytest.fixture(scope="session", params=s3.KINDS)
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Each object store in turn."""
    with s3.running(request.param, tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> S3Bucket:
    """An empty bucket in each object store in turn."""
    return s3_server.new_bucket()


@pytest.fixture
def start_s3(tmp_path: Path) -> Iterator[Callable[[s3.Kind], S3Server]]:
    """Starts object stores that the test may stop and start again."""
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(s3.running(kind, tmp_path / f"s3-{kind}"))
