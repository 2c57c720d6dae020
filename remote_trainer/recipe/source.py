"""YAML text to plain JSON values that know their lines, with every fault found on the way.

Stricter than YAML on purpose: no aliases (nothing can be blown up), no tags, no key twice, text keys only, and only the scalars of
JSON: ``yes``, ``12:30`` and ``2024-01-01`` are text, ``1e-4`` is a number. Rules for editing: nothing of recipes here; profiles are
read with it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from remote_trainer.errors import Fault

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

_NULL = re.compile(r"~|null|")
_BOOL = re.compile(r"true|false")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_TEXT = "tag:yaml.org,2002:str"
_PLAIN = {"tag:yaml.org,2002:seq", "tag:yaml.org,2002:map", _TEXT}


@dataclass(frozen=True, slots=True)
class Source:
    """What a YAML file says. ``lines`` has the 1-based line of every place, by JSON pointer; the document itself is ``""``."""

    file: str
    data: Any = None
    lines: Mapping[str, int] = field(default_factory=dict)
    #: First line of the content of block texts (``run: |``), which begins below the field's own line.
    blocks: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def line(self, pointer: str) -> int:
        """Return the line of a place, or of the nearest one around it that exists."""
        while pointer not in self.lines and pointer:
            pointer = pointer.rpartition("/")[0]
        return self.lines.get(pointer, 1)

    def fault(self, pointer: str, message: str, *, text_line: int = 0) -> Fault:
        """Return a fault at a place; ``text_line`` counts from 1 within the text that stands there."""
        line = self.line(pointer)
        if text_line and pointer in self.blocks:
            line = self.blocks[pointer] + text_line - 1
        return Fault(message, file=self.file, line=line, field=pointer)


def pointer_part(key: str | int) -> str:
    """Return one more level of a JSON pointer (RFC 6901)."""
    return "/" + str(key).replace("~", "~0").replace("/", "~1")


def read_source(text: bytes, file: str) -> Source:
    """Return what the text says; a syntax error leaves ``data`` None."""
    if len(text) > MAX_BYTES:
        return Source(file, faults=(Fault(f"the file has {len(text)} bytes, more than {MAX_BYTES} are not read", file=file),))
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        return Source(file, faults=(Fault("not UTF-8 text: save the file as UTF-8", file=file, line=line),))
    try:
        node = _Loader(decoded).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        return Source(file, faults=(Fault(f"not YAML: {problem}", file=file, line=mark.line + 1 if mark else 0),))
    except yaml.YAMLError as error:
        return Source(file, faults=(Fault(f"not YAML: {error}", file=file, line=1),))
    if node is None:
        return Source(file, faults=(Fault("the file is empty", file=file, line=1),))
    builder = _Builder(file)
    data = builder.value(node, "")
    return Source(file, data, builder.lines, builder.blocks, tuple(builder.faults))


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """Composes nodes without resolving scalars, without aliases and not deeper than MAX_DEPTH."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not allowed", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self.depth += 1
        try:
            node: Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        return node


class _Builder:
    """Turns nodes into values and notes the line of each."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[str, int] = {}
        self.blocks: dict[str, int] = {}
        self.faults: list[Fault] = []

    def fault(self, node: Node, pointer: str, message: str) -> None:
        self.faults.append(Fault(message, file=self.file, line=node.start_mark.line + 1, field=pointer))

    def value(self, node: Node, pointer: str) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(pointer, line)
        if node.tag not in _PLAIN and not (isinstance(node, ScalarNode) and node.tag == "!"):
            self.fault(node, pointer, f"the tag {node.tag} is not allowed")
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, pointer)
        if isinstance(node, SequenceNode):
            return [self.value(item, pointer + pointer_part(index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        if node.style == "|":
            self.blocks[pointer] = line + 1
        return _scalar(node.value) if node.style is None and node.tag != "!" else node.value

    def mapping(self, node: MappingNode, pointer: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or (key_node.style is None and not isinstance(_scalar(key_node.value), str)):
                self.fault(key_node, pointer, "a key must be text; quote it")
                continue
            key = key_node.value
            here = pointer + pointer_part(key)
            if key in result:
                self.fault(key_node, here, f"{key!r} is here twice; the first is in line {self.lines[here]}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, here)
        return result


def _scalar(text: str) -> Any:
    """Return the value of an unquoted scalar: the JSON ones, else text."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
