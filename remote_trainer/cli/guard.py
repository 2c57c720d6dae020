"""From what a command raises to one clear message and an exit code. No traceback ever reaches the terminal.

Rules for editing: a code belongs to an error's class (errors.py), never to a place here; docs/errors.md has the table.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import tempfile
import traceback
from typing import Any, NoReturn

import typer

from remote_trainer.cli import out
from remote_trainer.errors import InvariantBroken, RemoteTrainerError, UsageError
from remote_trainer.redact import redact

INTERRUPTED = 130  # as shells say SIGINT
PIPE_CLOSED = 141  # as shells say SIGPIPE

#: What the parser raises for a mistyped command line, wherever this version of typer keeps it.
_ParserError: Any = typer.BadParameter.__mro__[1]


class Interrupted(Exception):
    """The user pressed Ctrl-C where nothing is left to be said about a job."""


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run the command line of this process and exit."""
    _load_quickly()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows another one
    try:
        code = _run(app, program)
    except out.PipeClosed:
        code = PIPE_CLOSED
        for stream in (sys.stdout, sys.stderr):  # what is still buffered has no reader, of which Python would complain at its end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _load_quickly() -> None:
    """Keep the collector of garbage from looking through what libraries are made of: all of it stays."""
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)  # at the end there is nothing to look for either


def _run(app: typer.Typer, program: str) -> int:
    try:
        returned = app(prog_name=program, standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except (Interrupted, typer.Abort, KeyboardInterrupt):
        return _tell("Interrupted", "interrupted", INTERRUPTED)
    except _ParserError as error:
        if error.format_message().startswith("Usage:"):  # a noun without a verb: its help says what is missing
            out.problem(error.format_message())
            return UsageError.exit_code
        return _tell("UsageError", _parser_message(error, program), UsageError.exit_code)
    except out.PipeClosed:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost frame of a command
        cause = _single(error)
        if isinstance(cause, RemoteTrainerError):
            return _tell(type(cause).__name__, str(cause), cause.exit_code)
        return _tell("InvariantBroken", _bug(cause), InvariantBroken.exit_code)


def _parser_message(error: Any, program: str) -> str:
    path = error.ctx.command_path if error.ctx else program
    return f"{error.format_message() or 'a command is missing'} ({path} --help lists what there is)"


def _single(error: BaseException) -> BaseException:
    """Return the error inside groups that hold only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _bug(error: BaseException) -> str:
    """Keep the traceback where only this user can read it, and say so."""
    handle, path = tempfile.mkstemp(prefix="remote-trainer-bug-", suffix=".txt")
    with os.fdopen(handle, "w", errors="replace") as file:
        file.write(redact("".join(traceback.format_exception(error))))
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"this is a bug of remote-trainer ({what}); please report it with {path}; running jobs are not affected"


def _tell(error: str, message: str, code: int) -> int:
    if "--json" in sys.argv[1:]:
        out.document({"error": error, "message": message, "exit_code": code})
    else:
        out.problem(f"error: {message}")
    return code
