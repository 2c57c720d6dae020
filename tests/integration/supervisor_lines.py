"""The supervisor with a fault before any of its lines: a copy of it that can be struck wherever one of its processes is at work.

Each line of a function, each branch of a `case`, and each line of the shell in which a step's script runs gets a call of `_at LINE $?`
in front, which keeps `$?`. `Strike` names a line, the verb in which it is reached, and what happens there the first time; a `Scenario`
finds out which lines it passes, so that a test can strike at each of them.

Rules for editing: the copy does what the original does until it is struck; no line of the original is known by number here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.integration.supervisor_host import SUPERVISOR, Host, Reply, eventually

# The pid from /proc and not $$, which in a subshell is its parent's. Whoever kills all leaves itself for the end.
_HOOK = r"""
_at() { # LINE STATUS
    if [ -n "${RT_STRIKE-}${RT_TRACE-}" ]; then
        read -r _at_pid _at_rest </proc/self/stat
        [ -z "${RT_TRACE-}" ] || printf '%s %s %s\n' "${_verb-step}" "$1" "$(($$ != _at_pid))" >>"$RT_TRACE"
        case "${RT_STRIKE-}" in
            "${_verb-step} $1 "*) mkdir "$RT_STRUCK" 2>/dev/null && _strike "${RT_STRIKE##* }" ;;
        esac
    fi
    return "$2"
}

_strike() { # ACTION
    case $1 in
        parent) kill -9 $$ ;;
        process) kill -9 "$_at_pid" ;;
        all)
            for _at_other in $(grep -ls "RT_STRUCK=$RT_STRUCK" /proc/[0-9]*/environ | sed 's,[^0-9],,g'); do
                [ "$_at_other" = "$_at_pid" ] || kill -9 "$_at_other" 2>/dev/null
            done
            kill -9 "$_at_pid"
            ;;
        data) cat /dev/zero >"$RT_ROOT/full" 2>/dev/null ;;
        names) mkdir "$RT_ROOT/full" && (cd "$RT_ROOT/full" && touch $(seq 1 200) 2>/dev/null) ;;
    esac
}
"""

#: What begins no command of its own.
_KEYWORDS = re.compile(r"(then|else|elif|fi|do|done|esac|in|\}|\)|;;|#)(\s|;|$|<|>|\|)|\w+\(\) \{|#")
_STEP_SHELL = re.compile(r"^STEP_SHELL='$")


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: ``action`` is "process" (that is at that line), "parent" (of the subshell at that line), "all" (each process of this
    start), "data" or "names" (the disk is full: of bytes, of files)."""

    verb: str
    line: int
    action: str

    def environment(self, folder: Path) -> dict[str, str]:
        """What makes the copy strike; the folder appears when it does."""
        return {"RT_STRIKE": f"{self.verb} {self.line} {self.action}", "RT_STRUCK": str(folder)}

    def __str__(self) -> str:
        return f"{self.action} at {self.verb}:{self.line}"


def _branch(line: str) -> int:
    """Where the command of a `case` branch begins, or 0: behind the first bracket that nothing has opened."""
    plain = re.sub(r"""\\.|'[^']*'|"(\\.|[^"])*"|\$\{[^}]*\}""", lambda found: "_" * len(found[0]), line)
    depth = 0
    for at, char in enumerate(plain):
        depth += (char == "(") - (char == ")")
        if depth < 0:
            return at + 1
    return 0


@cache
def instrumented() -> str:
    """The supervisor with `_at LINE $?` in front of everything that can be struck. Line numbers are the original's."""
    lines, inside, string, continued = [], False, False, False
    for number, line in enumerate(SUPERVISOR.read_text().splitlines(), 1):
        bare = line.strip()
        starts_command = bool(bare) and not continued and not _KEYWORDS.match(bare)
        if _STEP_SHELL.match(line):
            string = True
        elif string and bare == "'":
            string = False
        elif line == "}":
            inside = False
        elif (inside or string) and starts_command:
            at = _branch(line)
            rest = line[at:].strip()
            if not at:
                at = len(line) - len(line.lstrip())
            if rest and not rest.startswith(";;"):
                line = f"{line[:at]}{' ' if line[:at].strip() else ''}_at {number} $?; {line[at:].lstrip()}"
        elif re.match(r"\w+\(\) \{( #|$)", line):
            inside = True
        continued = bare.endswith(("\\", "|", "&&")) and not bare.startswith("#")
        lines.append(line)
    text = "\n".join(lines) + "\n"
    hook_in_step = _HOOK.replace("'", "'\\''")
    return text.replace("set -u\n", f"set -u\n{_HOOK}\n", 1).replace("STEP_SHELL='\n", f"STEP_SHELL='{hook_in_step}", 1)


def install(host: Host) -> None:
    """Let a host run the copy."""
    host.script.write_text(instrumented())


def strikes(trace: Path, actions: tuple[str, ...]) -> list[Strike]:
    """A strike for each action at each line of a trace."""
    passed: set[tuple[str, int]] = set()
    subshell: set[tuple[str, int]] = set()
    for entry in trace.read_text().splitlines():
        verb, line, sub = entry.split()
        passed.add((verb, int(line)))
        if sub == "1":
            subshell.add((verb, int(line)))
    return [
        Strike(verb, line, action)
        for verb, line in sorted(passed)
        for action in actions
        if action != "parent" or (verb, line) in subshell
    ]


def came_there(host: Host, job: str) -> bool:
    """Whether the strike of a job happened; it may come a moment after the last answer."""
    end = time.monotonic() + 1
    while not (struck := (host.folder / f"struck-{job}").exists()) and time.monotonic() < end:
        time.sleep(0.02)
    return struck


@dataclass(frozen=True, slots=True)
class Play:
    """A job of a host, and the strike it is to survive; without one the lines it passes are recorded."""

    host: Host
    job: str
    strike: Strike | None = None

    def run(self, *words: object, stdin: str = "") -> Reply:
        """A verb that may be struck."""
        folder = self.host.folder
        if self.strike:
            return self.host.run(*words, stdin=stdin, **self.strike.environment(folder / f"struck-{self.job}"))
        return self.host.run(*words, stdin=stdin, RT_TRACE=str(folder / f"trace-{self.job}"))

    def launch(self, script: str, *, deadman: int = 0) -> Reply:
        """Starts the step s.1 as the first owner, who may be struck."""
        return self.run("launch", self.job, "s.1", 1, "inc1", "first", 20, deadman, script)

    def settle(self, script: str) -> Reply:
        """What a worker does after a doubt: it launches with a new nonce and a higher token until it is told of a claim."""
        for attempt in range(20):
            reply = self.host.launch(self.job, "s.1", script, nonce=f"again{attempt}", fence=2 + attempt, grace=20)
            if reply.code == 0:
                return reply
            assert reply.code == 74, reply
        raise AssertionError(f"{self.job}: never told of a claim")

    def happened(self, word: str) -> int:
        """How often the step wrote the word into a file of its own, which no supervisor touches."""
        path = self.host.folder / f"record-{self.job}"
        return path.read_text().split().count(word) if path.exists() else 0

    def note(self, word: str) -> str:
        """What the script says to have that written."""
        return f"echo {word} >>{self.host.folder}/record-{self.job}"

    def judge(self, code: int) -> str:
        """The state that the step ended in: the true one, or where the strike took the step itself, an honest one."""
        state = self.host.end_of(self.job, "s.1")
        starts = self.happened("start")
        if self.strike is None or (
            self.strike.verb != "__command" and self.strike.verb != "step" and self.strike.action != "all"
        ):
            assert state.startswith(f"exited code={code} "), state
            assert starts == 1, state
        else:
            assert state.startswith((f"exited code={code} ", "exited code=137 ", "lost why=supervisor ")), state
            assert starts <= 1 and (starts or not state.startswith(f"exited code={code} ")), state
        eventually(lambda: not self.host.processes(f"RT_MARK=:{self.job}/".encode()), "nobody left")
        return state


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is played, and which verbs are struck in it."""

    play: Callable[[Play], None]
    verbs: tuple[str, ...]

    def __str__(self) -> str:
        return self.play.__name__

    @property
    def traced(self) -> str:
        """The job in which nothing is struck."""
        return f"traced-{self}"

    def strikes(self, host: Host, actions: tuple[str, ...]) -> list[Strike]:
        """Every strike there is: at each line that is passed, the first time."""
        self.play(Play(host, self.traced))
        return [strike for strike in strikes(host.folder / f"trace-{self.traced}", actions) if strike.verb in self.verbs]
