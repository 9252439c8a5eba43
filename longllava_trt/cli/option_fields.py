"""Options of the command line that are fields of a dataclass: default, choices and type are the field's.

The field is read from the dataclass's source, because importing it would cost every `--help` NumPy and more. So a default
is written once, and the command line and Python agree on it.
"""

from __future__ import annotations

import argparse
import ast
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FieldOptions", "OptionField", "read_constant", "read_fields"]

_PACKAGE = "longllava_trt"
_ROOT = Path(__file__).resolve().parents[1]
_NUMBERS = {"int": int, "float": float}


@dataclass(frozen=True, slots=True)
class OptionField:
    """One field of a dataclass."""

    name: str
    kind: str
    """Its annotation without `| None`."""
    choices: tuple[Any, ...] | None
    """Of a Literal."""
    default: Any
    """None as well where the source computes it."""


class FieldOptions:
    """The fields of one dataclass, as flags.

    Args:
        module: Dotted name of the module whose source defines it.
        name: The dataclass.
    """

    def __init__(self, module: str, name: str) -> None:
        self.fields = read_fields(module, name)
        self._places: dict[str, str] = {}

    def add(
        self,
        parser: argparse._ActionsContainer,
        flag: str | tuple[str, ...],
        field: str,
        *,
        help: str,  # noqa: A002 - argparse's own word
        default_text: str | None = None,
        **options: Any,
    ) -> None:
        """Add the flag of a field.

        Args:
            parser: Where to.
            flag: With its dashes; several are spellings of one.
            field: Name of the field.
            help: What it does; the default is added.
            default_text: What to say instead of the default's value.
            options: Of `add_argument`, such as how to read the value.
        """
        known = self.fields[field]
        shown = default_text or _shown(known.default)
        if known.kind == "bool":
            options.setdefault("action", "store_true")
        elif known.choices is not None and "type" not in options:
            options.setdefault("choices", known.choices)
        elif known.kind in _NUMBERS:
            options.setdefault("type", _NUMBERS[known.kind])
        text = f"{help} (default: {shown})".replace("%", "%%")
        default = list(known.default) if options.get("action") == "append" else known.default
        flags = (flag,) if isinstance(flag, str) else flag
        action = parser.add_argument(*flags, default=default, help=text, **options)
        self._places[field] = action.dest

    def values(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the values of the flags that a verb has, by field: what the dataclass is made of."""
        return {
            # a flag that may be repeated fills a list
            field: tuple(value) if isinstance(value := getattr(args, dest), list) else value
            for field, dest in self._places.items()
            if dest in args
        }


@functools.cache
def read_fields(module: str, name: str) -> Mapping[str, OptionField]:
    """Return the fields of a dataclass from its source, by name."""
    tree = _source(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [s for s in node.body if isinstance(s, ast.AnnAssign)]
            return {f.name: f for f in (_field(module, statement) for statement in fields)}
    raise AssertionError(f"Bug: {module} does not define {name}")


def read_constant(module: str, name: str) -> Any:
    """Return a constant of a module from its source."""
    found = _definition(module, name)
    assert found, f"Bug: {module} does not define {name}"
    return _value(*found)


def _field(module: str, statement: ast.AnnAssign) -> OptionField:
    assert isinstance(statement.target, ast.Name), "Bug: a field is a name"
    annotation = statement.annotation
    if isinstance(annotation, ast.BinOp):
        annotation = annotation.left
    default = None if statement.value is None else _value(module, statement.value)
    choices = _choices(module, annotation)
    return OptionField(statement.target.id, ast.unparse(annotation), choices, default)


def _choices(module: str, annotation: ast.expr) -> tuple[Any, ...] | None:
    """Return the values of a Literal, written out or by its name."""
    if isinstance(annotation, ast.Name):
        found = _definition(module, annotation.id)
        return _choices(*found) if found else None
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values: Any = ast.literal_eval(annotation.slice)
        return values if isinstance(values, tuple) else (values,)
    return None


def _value(module: str, node: ast.expr) -> Any:
    """Return what an expression stands for, if it is written out or a constant of ours."""
    if isinstance(node, ast.Name):
        found = _definition(module, node.id)
        return _value(*found) if found else None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _definition(module: str, name: str) -> tuple[str, ast.expr] | None:
    """Return where a name of a module is defined, and as what."""
    for node in ast.walk(_source(module)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            from_us = node.module is not None and node.module.startswith(f"{_PACKAGE}.")
            return _definition(str(node.module), name) if from_us else None
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return module, node.value
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return module, node.value
    return None


@functools.cache
def _source(module: str) -> ast.Module:
    parts = module.removeprefix(f"{_PACKAGE}.").split(".")
    path = _ROOT.joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _shown(default: Any) -> str:
    """Say a default as it would be typed."""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default)) or "none"
    return "none" if default is None else str(default)
