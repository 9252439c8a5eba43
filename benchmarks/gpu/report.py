"""Results as Markdown: a table a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["markdown"]


def markdown(document: dict[str, Any]) -> str:
    """Return the text of results.md."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"`{document['command']}`, {document['date']}"
    for name, step in document["steps"].items():
        status = step["status"] + (f", {step['seconds']} s" if "seconds" in step else "")
        yield ""
        yield f"## {name}: {step['about']} ({status})"
        yield ""
        yield from _table(step.get("rows", []))
        yield from (f"    {line}" for line in step.get("log", []))


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not rows:
        return
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(column)) for column in columns) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e3 or abs(value) >= 1e6 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
