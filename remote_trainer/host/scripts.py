"""Puts our shell scripts on a host and calls them: one exec per call, the upload only where the host lacks them.

Rules for editing: a script is installed under the hash of its text, so a newer worker's scripts and the running jobs' live side by side.
The host needs nothing but sh for this.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from remote_trainer.host.protocol import NOT_INSTALLED, WIPED, failure
from remote_trainer.ports import Completed, Transport

SCRIPTS = ("supervisor", "depot", "watchman")

# "~" is the host's home. Without the file "inc" nobody has set this disk up: it is new, or it was wiped. The time of change of "spoken"
# tells the watchman that we are alive.
_CALL = (
    'case $1 in "~" | "~/"*) RT_ROOT=$HOME${1#"~"};; *) RT_ROOT=$1;; esac; export RT_ROOT; script=$RT_ROOT/bin/$2; shift 2; '
    f'[ -f "$script" ] || {{ [ -f "$RT_ROOT/inc" ] && exit {NOT_INSTALLED}; exit {WIPED}; }}; '
    '{ true >"$RT_ROOT/spoken"; } 2>/dev/null; exec sh "$script" "$@"'
)
# Read from stdin: the text ends with the call, so an upload that was cut short installs nothing and calls nothing.
_INSTALL = """\
case $1 in "~" | "~/"*) RT_ROOT=$HOME${1#"~"};; *) RT_ROOT=$1;; esac; export RT_ROOT
attempt() { said=$("$@" 2>&1) && return; echo "E cannot set up $RT_ROOT: $said" >&2; case $said in *"No space"*) exit 28;; esac; exit 79; }
full() { echo "E cannot write in $RT_ROOT/bin; is the disk full?" >&2; exit 28; }
umask 077
attempt mkdir -p "$RT_ROOT/bin"
"""


@cache
def text(name: str) -> str:
    """Return one of our scripts."""
    return Path(__file__).with_name(f"{name}.sh").read_text()


@cache
def installed_name(name: str) -> str:
    """Return the file name of a script on hosts, with the hash of its text."""
    return f"{name}-{hashlib.sha256(text(name).encode()).hexdigest()[:8]}.sh"


def call(root: str, name: str, *args: str) -> list[str]:
    """Return the command that runs an installed script; 71 or 72 says that it is not there."""
    return ["sh", "-c", _CALL, "sh", root, installed_name(name), *args]


@cache
def _installation() -> bytes:
    """Return the sh text that installs our scripts below its first argument and, given one, becomes the call `NAME ARGS…`."""
    parts = [_INSTALL]
    for name in SCRIPTS:
        end = f"END-{hashlib.sha256(text(name).encode()).hexdigest()[:16]}"
        target = f"$RT_ROOT/bin/{installed_name(name)}"
        parts.append(f'cat >"{target}.$$" <<\'{end}\' || full\n{text(name)}{end}\nattempt mv -f "{target}.$$" "{target}"\n')
    parts.append('[ $# -gt 1 ] || exit 0\nscript=$RT_ROOT/bin/$2; shift 2; exec sh "$script" "$@" </dev/null\n')
    return "".join(parts).encode()


async def run(transport: Transport, root: str, name: str, *args: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
    """Call a script; installs ours first where the host was set up by another version of us."""
    done = await transport.run(call(root, name, *args), stdin=stdin, timeout_s=timeout_s)
    if done.code == NOT_INSTALLED:
        await install(transport, root)
        done = await transport.run(call(root, name, *args), stdin=stdin, timeout_s=timeout_s)
    return done


async def install(transport: Transport, root: str, name: str = "", *args: str) -> Completed:
    """Install our scripts, and call one if named, in one exec."""
    argv = ["sh", "-s", root, *([installed_name(name), *args] if name else [])]
    done = await transport.run(argv, stdin=_installation(), timeout_s=120)
    if not name and done.code != 0:
        raise failure(done, transport.address, "installing the supervisor")
    return done
