"""Templates: what a recipe may compute from parameters, and how values come into scripts.

The language is Jinja2 cut down to expressions, ``{% if %}`` and ``{% for %}``: no calls, assignments, macros or includes, so that a
template is bounded in time by its own size and its parameters'. In a script every value is quoted for the shell, and refused where
quoting would not hold (shell.py); ``| raw`` opts out. Rules for editing: a node, filter or test is allowed here by name or not at
all. Pure: no files, no clock.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from remote_trainer.errors import UsageError
from remote_trainer.recipe.shell import ShellReader

MAX_OUTPUT = 256 * 1024  # characters of one rendered text
MAX_SOURCE = 64 * 1024
MAX_LOOPS = 2  # nested for

#: Names that templates know besides the parameters.
BUILTIN_NAMES = frozenset({"parameters"})
_KEYWORDS = (
    "and",
    "or",
    "not",
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "endfor",
    "in",
    "is",
    "true",
    "false",
    "none",
    "loop",
    "self",
)
#: Words a parameter may not be named by.
RESERVED = BUILTIN_NAMES.union(_KEYWORDS)

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For, nodes.CondExpr, nodes.Compare,
    nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Filter, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.Add, nodes.Sub,
    nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos, nodes.Concat, nodes.List, nodes.Tuple,
)  # fmt: skip
_FILTERS = ("abs", "default", "first", "float", "int", "join", "last", "length", "lower", "round", "sort", "string", "trim",
            "unique", "upper", "min", "max")  # fmt: skip
_TESTS = (
    "defined",
    "none",
    "in",
    "even",
    "odd",
    "divisibleby",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "string",
    "number",
    "boolean",
)


class TemplateFault(NamedTuple):
    """What is wrong in a template; ``line`` counts from 1 within its text."""

    line: int
    message: str


class RenderError(UsageError):
    """A template could not be rendered with these values."""


class _Raw(str):
    """Text that is put into a script as it is."""

    __slots__ = ()


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}


def _given(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


class _Environment(SandboxedEnvironment):
    """The cut-down language; ``output`` makes text of each value that a template puts out."""

    intercepted_binops = frozenset({"*", "%"})

    def __init__(self, output: Callable[[Any], Any]) -> None:
        # Shell text is full of {# (as in ${#name}): comments get a sign that nobody types by accident.
        super().__init__(
            undefined=StrictUndefined, finalize=output, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
            comment_start_string="{!!", comment_end_string="!!}",
        )  # fmt: skip
        self.globals.clear()
        known = self.filters
        self.filters = {name: known[name] for name in _FILTERS}
        self.filters |= {"raw": lambda value: _Raw(_text(value)), "json": _to_json, "without": _without, "given": _given}
        self.tests = {name: self.tests[name] for name in _TESTS}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise RenderError(f"{operator} is for numbers only")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr in ("index", "index0", "first", "last", "length") and super().is_safe_attribute(obj, attr, value)


def _text(value: Any) -> str:
    """Return a value as an environment variable or one shell word would hold it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    return _to_json(value)


def _known(value: Any) -> Any:
    if value is None:
        raise RenderError("the value is not set: give the parameter a default, or guard it with {% if … %}")
    if isinstance(value, str) and "\0" in value:
        raise RenderError("the value holds a NUL character")
    return value


def _plain_output(value: Any) -> Any:
    # An undefined value raises by itself when it is put out, naming itself.
    return value if isinstance(value, Undefined) else _text(_known(value))


def _shell_output(value: Any) -> Any:
    """Return the quoted value between NULs, which neither scripts nor values hold: so it is found again in the whole."""
    if isinstance(value, Undefined | _Raw):
        return value
    words = value if isinstance(value, list | tuple) else [value]
    return "\0" + " ".join(shlex.quote(_text(_known(word))) for word in words) + "\0"


@cache
def _environment(*, quoted: bool) -> _Environment:
    return _Environment(_shell_output if quoted else _plain_output)


def _render(source: str, values: Mapping[str, Any], *, quoted: bool) -> str:
    chunks: list[str] = []
    size = 0
    try:
        for chunk in _environment(quoted=quoted).from_string(source).generate(parameters=values, **values):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_OUTPUT:
                raise RenderError(f"the text grows beyond {MAX_OUTPUT} characters")
    except RenderError:
        raise
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        raise RenderError(str(error)) from error
    return "".join(chunks)


def render_text(source: str, values: Mapping[str, Any]) -> str:
    """Return the text with values put in as they are. RenderError if it cannot be."""
    return _render(source, values, quoted=False)


def render_shell(source: str, values: Mapping[str, Any]) -> str:
    """Return the script with values put in as quoted words. RenderError if it cannot be, or if a quote would not hold."""
    reader = ShellReader()
    parts = _render(source, values, quoted=True).split("\0")
    for index, part in enumerate(parts):
        if index % 2 == 0:
            reader.feed(part)
        elif reader.obstacle:
            raise RenderError(f"the value {part} stands {reader.obstacle}")
        else:
            reader.value()
    return "".join(parts)


def evaluate(expression: str, values: Mapping[str, Any]) -> bool:
    """Return whether the expression is true. RenderError if it cannot be computed."""
    try:
        compiled = _environment(quoted=False).compile_expression(expression, undefined_to_none=False)
        return bool(compiled(parameters=values, **values))
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        raise RenderError(str(error)) from error


def check_template(source: str, names: Collection[str], *, quoted: bool) -> list[TemplateFault]:
    """Return everything wrong with a template whose parameters have these names."""
    if len(source) > MAX_SOURCE:
        return [TemplateFault(1, f"the text has {len(source)} characters, more than {MAX_SOURCE} are not allowed")]
    environment = _environment(quoted=quoted)
    try:
        tree = environment.parse(source)
    except TemplateSyntaxError as error:
        return [TemplateFault(error.lineno, f"template: {error.message}")]
    faults = list(_tree_faults(environment, tree, names))
    return faults + list(_quoting_faults(environment, source)) if quoted else faults


def check_expression(source: str, names: Collection[str]) -> list[TemplateFault]:
    """Return everything wrong with a bare expression (``when``)."""
    environment = _environment(quoted=False)
    try:
        parser = Parser(environment, source, state="variable")
        expression = parser.parse_expression()
        if not parser.stream.eos:
            return [TemplateFault(1, f"expression: unexpected {parser.stream.current.value!r}")]
    except TemplateSyntaxError as error:
        return [TemplateFault(error.lineno, f"expression: {error.message}")]
    tree = nodes.Template([nodes.Output([expression], lineno=1)], lineno=1)
    return list(_tree_faults(environment, tree, names))


def _tree_faults(environment: _Environment, tree: nodes.Template, names: Collection[str]) -> Iterator[TemplateFault]:
    loops = [name.name for loop in tree.find_all(nodes.For) for name in _targets(loop)]
    known = {*names, *BUILTIN_NAMES, *loops, *(["loop"] if loops else [])}
    for node in _walk(tree):
        if not isinstance(node, _ALLOWED):
            what = "a call" if isinstance(node, nodes.Call) else type(node).__name__.lower()
            yield TemplateFault(
                node.lineno, f"{what} is not allowed in a template: only expressions, {{% if %}} and {{% for %}} are"
            )
        elif isinstance(node, nodes.Name) and node.ctx == "load" and node.name not in known:
            yield TemplateFault(node.lineno, f"{node.name!r} is not a parameter{_meant(node.name, names)}")
        elif isinstance(node, nodes.Getattr):
            owner = node.node.name if isinstance(node.node, nodes.Name) else ""
            if owner not in ("parameters", "loop"):
                yield TemplateFault(node.lineno, f"values have no fields: .{node.attr} is not allowed")
            elif owner == "parameters" and node.attr not in names:
                yield TemplateFault(node.lineno, f"{node.attr!r} is not a parameter{_meant(node.attr, names)}")
        elif isinstance(node, nodes.Filter) and node.name not in environment.filters:
            yield TemplateFault(node.lineno, f"there is no filter {node.name!r}{_meant(node.name, environment.filters)}")
        elif isinstance(node, nodes.Test) and node.name not in environment.tests:
            yield TemplateFault(node.lineno, f"there is no test {node.name!r}{_meant(node.name, environment.tests)}")
        elif isinstance(node, nodes.For) and _depth(node) > MAX_LOOPS:
            yield TemplateFault(node.lineno, f"for is nested deeper than {MAX_LOOPS} levels")


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    for child in node.iter_child_nodes():
        yield child
        yield from _walk(child)


def _targets(loop: nodes.For) -> Iterator[nodes.Name]:
    return iter([loop.target]) if isinstance(loop.target, nodes.Name) else loop.target.find_all(nodes.Name)


def _depth(loop: nodes.For) -> int:
    return 1 + max((_depth(inner) for inner in loop.find_all(nodes.For)), default=0)


def _quoting_faults(environment: _Environment, source: str) -> Iterator[TemplateFault]:
    """Read the script as if every branch were taken; render_shell reads again what is really there."""
    reader = ShellReader()
    expression: list[str] | None = None
    obstacle, start = "", 0
    for line, kind, text in environment.lex(source):
        if kind == "data":
            reader.feed(text)
        elif kind == "variable_begin":
            expression, obstacle, start = [], reader.obstacle, line
        elif kind == "variable_end" and expression is not None:
            if expression[-2:] == ["|", "raw"]:
                reader.feed("x")
            elif obstacle:
                yield TemplateFault(start, f"a value stands {obstacle}")
            else:
                reader.value()
            expression = None
        elif expression is not None and kind != "whitespace":
            expression.append(text)


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
