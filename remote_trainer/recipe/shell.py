"""Says whether a quoted value may stand at a place of a shell script: a small, strict reader of POSIX sh.

A quoted value (``'a b'``) is one harmless word only where the shell is reading plain words. Within quotes, comments, here-documents
or arithmetic it would end the quotes, or be run. Rules for editing: when in doubt, refuse: whoever writes the recipe can always put
the value into ``env`` and write ``"$NAME"``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLANK = " \t\n"
_BREAKS = _BLANK + ";&|<>()"
_DELIMITER = re.compile(r"""(?P<dash>-?)(\\(?=\w)|(?P<quote>["'])?)(?P<name>\w+)(?(quote)(?P=quote))""", re.ASCII)
_SPECIAL = "$?!@*-#_"  # parameters of one character

QUOTED = "within quotes: values are quoted already, write it outside of them ('text '{{ name }}' text')"
COMMENT = "within a comment"
HERE_DOCUMENT = "within a here-document: put the value into env and write $NAME"
ARITHMETIC = "within $((…)): put the value into env and write $NAME, or use | raw for a number"
BACKTICKS = "within backticks: use $(…)"
ESCAPED = "right after a backslash or a dollar sign"
CASE = 'in $(…) after a case: put the value into env and write "$NAME"'
BRACES = "within quoted ${…}: put the value into env"
DELIMITER = "where a here-document's end is named"


@dataclass(slots=True)
class _Frame:
    """One level of nesting: ``kind`` is the opening text; ``depth`` counts the plain parentheses open within it."""

    kind: str
    depth: int = 0


class ShellReader:
    """Fed with the literal text of a script in order; ``obstacle`` says why a quoted value may not follow (empty: it may)."""

    def __init__(self) -> None:
        self._stack = [_Frame("")]
        self._pending = ""  # a backslash, dollar sign or "<<" whose meaning depends on what follows
        self._word = ""  # the plain word so far; "x" stands in for quotes and values
        self._documents: list[tuple[str, bool]] = []  # here-documents that begin after this line: end, tabs stripped
        self._line = ""  # the current line of a here-document
        self._doubt = ""  # something too clever was read: nothing may follow

    @property
    def obstacle(self) -> str:
        """Return why a quoted value may not stand here, empty if it may."""
        if self._doubt:
            return self._doubt
        if self._pending in ("\\", "$", "<<"):
            return DELIMITER if self._pending == "<<" else ESCAPED
        if any(frame.kind == "`" for frame in self._stack):
            return BACKTICKS  # they are read twice, at every depth
        return {
            "'": QUOTED, '"': QUOTED, "#": COMMENT, "<<": HERE_DOCUMENT, "$((": ARITHMETIC, '"${': BRACES,
        }.get(self._stack[-1].kind, "")  # fmt: skip

    def value(self) -> None:
        """Pass over a value that stands here."""
        if self._pending == "$(":
            self._open("$(")
        self._pending = ""
        self._word += "x"

    def feed(self, text: str) -> None:
        """Read on."""
        position = 0
        while position < len(text):
            position += self._step(text, position)

    def _step(self, text: str, at: int) -> int:
        """Read at least one character; return how many."""
        char, kind = text[at], self._stack[-1].kind
        if kind == "<<":
            self._in_document(char)
        elif kind == "#":
            if char == "\n":
                self._stack.pop()
                self._plain(char)
        elif kind == "'":
            if char == "'":
                self._stack.pop()
        elif self._pending:
            return self._resolve(char)
        elif char == "\\":
            self._pending = "\\"
        elif char == "$":
            self._pending = "$"
        elif kind in ('"', '"${', "$((", "`"):
            self._within(char, kind)
        else:
            return self._plain(char)
        return 1

    def _resolve(self, char: str) -> int:
        """Settle what a pending character means now that the next one is known."""
        pending, self._pending = self._pending, ""
        kind = self._stack[-1].kind
        quoted = kind in ('"', '"${', "$((")
        if pending == "\\":
            self._word += "" if char == "\n" else "x"
        elif pending == "$(":  # was "$(": arithmetic if another parenthesis follows
            self._open("$((" if char == "(" else "$(")
            return 1 if char == "(" else 0
        elif pending == "<" and char == "<":
            self._pending = "<<"
            self._word = ""
        elif pending == "<<":
            return self._delimiter(char)
        elif pending == "$" and char == "(":
            self._pending = "$("
        elif pending == "$" and char == "{":
            self._open('"${' if quoted else "${")
            self._word = "x"  # "#" means a length here, never a comment
        elif pending == "$" and char == "'" and not quoted:
            self._doubt = "after $'…', which not every shell knows"
        else:
            self._word += "x" if pending == "$" else ""
            return 1 if pending == "$" and (char.isalnum() or char in _SPECIAL) else 0
        return 1

    def _open(self, kind: str) -> None:
        self._stack.append(_Frame(kind))
        self._word = ""

    def _close(self) -> None:
        self._stack.pop()
        self._word = "x"

    def _within(self, char: str, kind: str) -> None:
        """Read one character within double quotes, quoted braces, arithmetic or backticks."""
        frame = self._stack[-1]
        if kind == "$((":
            frame.depth += {"(": 1, ")": -1}.get(char, 0)
            if char in "'\"`":
                self._doubt = "after quotes within $((…))"
            if frame.depth == -2:  # the second of "))"
                self._close()
            return
        if char == {'"': '"', '"${': "}", "`": "`"}[kind]:
            self._close()
        elif char == "`" and kind != "`":
            self._open("`")
        elif char == '"' and kind == '"${':
            self._doubt = 'after quotes within "${…}"'

    def _plain(self, char: str) -> int:
        """Read one character where words are read."""
        frame = self._stack[-1]
        if char == "#" and not self._word and frame.kind != "${":
            self._stack.append(_Frame("#"))
        elif char in ("'", '"', "`"):
            self._open(char)
        elif char == "}" and frame.kind == "${":
            self._close()
        elif char in _BREAKS:
            self._end_word(char)
        else:
            self._word += char
        return 1

    def _end_word(self, char: str) -> None:
        frame = self._stack[-1]
        if self._word == "case" and any(outer.kind == "$(" for outer in self._stack):
            self._doubt = CASE  # its patterns end with a parenthesis that is not ours
        self._word = ""
        if frame.kind == "$(" and char == "(":
            frame.depth += 1
        elif frame.kind == "$(" and char == ")":
            if frame.depth:
                frame.depth -= 1
            else:
                self._close()
        elif char == "<" and frame.kind != "${":
            self._pending = "<"
        elif char == "\n" and self._documents:
            self._stack.append(_Frame("<<"))

    def _delimiter(self, char: str) -> int:
        """Read the word after ``<<`` character by character; it stays pending until it ends."""
        if char == "<" and not self._word:
            self._doubt = "after <<<, which not every shell knows"
            return 1
        if char in _BLANK + ";&|()<>" and not (char in " \t" and self._word in ("", "-")):
            match = _DELIMITER.fullmatch(self._word)
            if match is None:
                self._doubt = "after a here-document whose end is not a plain name"
            else:
                self._documents.append((match["name"], bool(match["dash"])))
            self._word = ""
            return 0
        self._pending = "<<"
        self._word += char.strip(" \t")
        return 1

    def _in_document(self, char: str) -> None:
        if char != "\n":
            self._line += char
            return
        end, tabs = self._documents[0]
        if (self._line.lstrip("\t") if tabs else self._line) == end:
            self._documents.pop(0)
            if not self._documents:
                self._stack.pop()
        self._line = ""
