"""A Jinja template in a sandbox, set up as transformers renders chat templates, that cannot run for ever.

Import it where a template is there: most bundles need no Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longllava_trt.core.errors import ConfigError

if TYPE_CHECKING:
    from jinja2.parser import Parser

__all__ = ["JinjaTemplate"]

_MOST_STEPS = 100_000
"""Rounds of loops and calls of macros in one text."""
_LARGEST = 1_000_000
"""Largest operand of a multiplication or power, or its length."""


class JinjaTemplate:
    """A compiled template.

    Args:
        source: Its text.
        where: Beginning of errors.

    Raises:
        ConfigError: If it is not a template.
    """

    def __init__(self, source: str, where: str) -> None:
        self.where = where
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _ChatExtension]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _fail
        environment.globals["strftime_now"] = lambda form: (
            datetime.now().astimezone().strftime(form)
        )
        self._counter = environment.extensions[_ChatExtension.identifier]
        try:
            tree = environment.parse(source)
            bodies = [(node.lineno, node.body) for node in tree.find_all(nodes.For)]
            bodies += [(node.lineno, node.body) for node in tree.find_all(nodes.Macro)]
            for line, body in bodies:
                step = self._counter.call_method("count_step", lineno=line)
                body.insert(0, nodes.Output([step], lineno=line))
            self._template = environment.from_string(tree)
        except (TemplateError, RecursionError) as err:
            place = f" in line {at}" if (at := getattr(err, "lineno", None)) else ""
            raise ConfigError(f"{where}: not a Jinja template ({err}{place})") from err

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return its text.

        Raises:
            ConfigError: If it raises an error or does not end.
        """
        assert isinstance(self._counter, _ChatExtension), "Bug: found by its own name"
        self._counter.num_steps = 0
        try:
            return self._template.render(**variables)
        except _EndlessError as err:
            raise ConfigError(f"{self.where}: it does not end within {_MOST_STEPS} steps") from err
        except Exception as err:
            # a template is a program, and may raise anything
            raise ConfigError(f"{self.where}: it raises {type(err).__name__}: {err}") from err


class _EndlessError(Exception):
    """A template does not end."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute a product or power, if that is not large."""
        sizes = (len(x) if isinstance(x, str | list | tuple) else x for x in (left, right))
        if any(size > _LARGEST for size in sizes):
            raise TemplateError(f"'{operator}' of a number above {_LARGEST}")
        return super().call_binop(context, operator, left, right)


class _ChatExtension(Extension):
    """The tag `generation`, which marks answers and writes nothing itself; and the count of steps."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.num_steps = 0

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def count_step(self) -> str:
        """Count one step, and write nothing."""
        self.num_steps += 1
        if self.num_steps > _MOST_STEPS:
            raise _EndlessError
        return ""


def _fail(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})
