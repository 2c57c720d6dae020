"""Log lines: structured, bound to their job, and without a single secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from remote_trainer import log

SECRET = 'h"nter2/with+odd=signs\\and ä'
KEY = "-----BEGIN KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nBG5vbmUAAAAEbm9uZQAAAA\n-----END KEY-----\n"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is the process's: leave it as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    logging.getLogger("remote_trainer").setLevel(logging.NOTSET)


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> Literal["json", "text"]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def lines() -> io.StringIO:
    """What is logged, as JSON from debug on."""
    stream = io.StringIO()
    log.configure("debug", "json", stream)
    return stream


def last(lines: io.StringIO) -> dict[str, Any]:
    return json.loads(lines.getvalue().splitlines()[-1])  # type: ignore[no-any-return]


def test_a_line(lines: io.StringIO) -> None:
    """A line is one JSON object with event, level, time and what was bound; the event names the phase."""
    with log.bound(job="j1", attempt=2, token=7):
        log.get().info(log.event("executing"), action="step_started", step="train.1")
    found = last(lines)
    assert found.pop("at").endswith("Z")
    assert found == {
        "event": "training.remote.executing",
        "level": "info",
        "action": "step_started",
        "step": "train.1",
        "job": "j1",
        "attempt": 2,
        "token": 7,
    }
    log.get().info("outside")
    assert "job" not in last(lines)


async def test_tasks_inherit(lines: io.StringIO) -> None:
    """A task logs with what was bound where it was started, whatever other tasks bind."""

    async def work(job: str) -> None:
        with log.bound(job=job):
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.to_thread(log.get().info, "from", who=job))

    with log.bound(instance="i1"):
        await asyncio.gather(work("a"), work("b"))
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert all(line["job"] == line["who"] and line["instance"] == "i1" for line in found)
    assert len(found) == 2


def test_libraries(lines: io.StringIO) -> None:
    """What libraries log takes the same way out, from warnings on."""
    logging.getLogger("asyncssh").info("chatter")
    logging.getLogger("asyncssh").warning("connection %s lost", "x")
    assert len(lines.getvalue().splitlines()) == 1
    assert (last(lines)["event"], last(lines)["logger"]) == ("connection x lost", "asyncssh")


def test_silent_until_configured() -> None:
    """Before anybody said where log lines go, none are written: not to stdout, which is a command's answer, nor to stderr."""
    program = "from remote_trainer import log; log.get().error('x', password='y'); log.get().debug('x')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_levels() -> None:
    """Lines below the level that was chosen are not written."""
    stream = io.StringIO()
    log.configure("warning", "json", stream)
    log.get().info("no")
    log.get().warning("yes")
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.fault("secret-sought")
@pytest.mark.parametrize("secret", [SECRET, KEY, "ünïcode-secret"])
def test_a_registered_secret_never_appears(form: Literal["json", "text"], secret: str) -> None:
    """A registered secret is in no line, in whatever value, key, message, traceback or escaping it was handed in."""
    stream = io.StringIO()
    log.configure("debug", form, stream)
    logger = log.get()
    log.hide(secret)

    class Odd:
        def __repr__(self) -> str:
            return f"Odd({secret})"

    logger.info(
        f"message {secret}", value=secret, nested={"list": [secret, (secret, {secret: 1})]}, odd=Odd(), raw=secret.encode()
    )
    logger.info("message %s", secret)
    logger.info("quoted", argv=repr([secret]), document=json.dumps({"a": secret}), line=secret.splitlines()[-1])
    logging.getLogger("library").error("message %s %r", secret, secret)
    with log.bound(job=secret):
        logger.warning("bound")
    try:
        try:
            raise ValueError(f"inner {secret!r}")
        except ValueError as error:
            error.add_note(secret)
            local = secret  # noqa: F841
            raise RuntimeError(secret) from error
    except RuntimeError as error:
        logger.exception("failed", error=error)
        logging.getLogger("library").exception("failed too")
    text = stream.getvalue()
    assert "Traceback" in text
    for part in (secret, *secret.strip().splitlines()):
        for escaped in (part, repr(part)[1:-1], json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]):
            assert escaped not in text


def test_what_looks_like_a_secret(lines: io.StringIO) -> None:
    """Values under telling names are masked; numbers, such as the fencing token, are not."""
    log.get().info("x", api_key="k", HF_TOKEN="t", headers={"Authorization": "y"}, token=3, password="", tokens=[1])
    found = last(lines)
    assert (found["api_key"], found["HF_TOKEN"], found["headers"]["Authorization"]) == ("***", "***", "***")
    assert (found["token"], found["password"]) == (3, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mongodb://user:pass@host/db", "mongodb://user:***@host/db"),
        ("https://ghp_token@github.com/x", "https://***@github.com/x"),
        ("ssh://user@host:22", "ssh://user@host:22"),
        ("https://b/k?X-Amz-Credential=a&X-Amz-Signature=ff00&x=1", "https://b/k?X-Amz-Credential=***&X-Amz-Signature=***&x=1"),
        ("https://api/v0?api_key=abc", "https://api/v0?api_key=***"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer ***"),
        ("a bearer abcdefghijkl", "a bearer ***"),
        ("a basic configuration at 10:30", "a basic configuration at 10:30"),
    ],
)
def test_what_looks_like_a_secret_in_text(text: str, expected: str) -> None:
    """Passwords in URLs, signatures of links and authorisation headers are masked anywhere; other text stays."""
    assert log.redact(text) == expected
