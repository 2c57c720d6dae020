"""Vast.ai's official command line as a conformance client: many commands, each a process of its own, one start of Python.

Importing that client takes a second or more. So its own Python, in its own environment, imports it once and forks for each command;
nothing of it is imported here.

Rules for editing: this file is also the program that runs over there, so its top needs the standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Said:
    """What a command has left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


@dataclass
class Client:
    """The client, started; call it with a command line."""

    process: subprocess.Popen[str]

    def __call__(self, line: str) -> Said:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(shlex.split(line)) + "\n")
        self.process.stdin.flush()
        return Said(**json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def client(url: str, key: str, folder: Path) -> Iterator[Client]:
    """A client of that service, with all it keeps below `folder`."""
    from tests.support import venvs  # over there nothing of ours can be imported
    from tests.support.patience import PATIENCE_S

    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        **{f"XDG_{name}_HOME": str(folder / name) for name in ("CONFIG", "CACHE", "STATE")},
        "VASTAI_NO_UPDATE_CHECK": "1",
        "VAST_URL": url,
        "VAST_API_KEY": key,
        "COLUMNS": "250",
    }
    command = [venvs.program("vastai", "python"), str(Path(__file__))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd=folder, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Client(process)
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(PATIENCE_S)


def _serve() -> None:
    """Over there: run each command that comes."""
    from vastai.cli import commands  # type: ignore[import-not-found]
    from vastai.cli import main as program  # type: ignore[import-not-found]

    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}")

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if not child:
                sys.argv = ["vastai", *json.loads(line)]
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what asks for more is told that there is nothing
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                program.main()
                sys.stdout.flush()
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = [_read(out), _read(err)]
        print(json.dumps({"code": code, "out": texts[0], "err": texts[1]}), flush=True)


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())


if __name__ == "__main__":
    _serve()
