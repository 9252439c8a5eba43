"""Checks of option values, with their faults as sentences for one error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard

from longllava_trt.core.errors import InputError

__all__ = ["check", "choice", "flag", "is_whole", "name_or_none", "number", "whole_number"]


def check(where: str, problems: Iterable[str | None]) -> None:
    """Raise one `InputError` that lists all problems, if there are any."""
    found = [problem for problem in problems if problem]
    if found:
        raise InputError(f"{where}: {'; '.join(found)}")


def whole_number(
    name: str, value: object, *, at_least: int, or_none: bool = False, note: str = ""
) -> str | None:
    """Return the fault of an integer, or None; a bool is no integer."""
    if or_none and value is None:
        return None
    if is_whole(value) and value >= at_least:
        return None
    return f"{name} must be at least {at_least}{note}, got {_shown(value, is_whole(value))}"


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, Python's or NumPy's; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def number(name: str, value: object, expected: str, *, least: float, most: float) -> str | None:
    """Return the fault of a finite number, or None; ``expected`` names the range in words."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and least <= value <= most:  # type: ignore[arg-type, operator]
        return None
    return f"{name} must be {expected}, got {_shown(value, is_number)}"


def flag(name: str, value: object) -> str | None:
    """Return the fault of a value that must be True or False, or None."""
    return None if isinstance(value, bool) else f"{name} must be True or False, got {value!r}"


def choice(name: str, value: object, choices: Iterable[str]) -> str | None:
    """Return the fault of a value that must be one of some names, or None."""
    known = [*choices]
    if isinstance(value, str) and value in known:
        return None
    return f"{name} must be one of {', '.join(known)}, got '{value}'"


def name_or_none(name: str, value: object) -> str | None:
    """Return the fault of a value that must be a text or None, or None."""
    return (
        None if value is None or isinstance(value, str) else f"{name} must be a name, got {value!r}"
    )


def _shown(value: object, is_right_type: bool) -> str:
    """Return a value as text; if its type is wrong, with its type."""
    return f"{value}" if is_right_type else f"{value!r} ({type(value).__name__})"
