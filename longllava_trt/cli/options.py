"""Options, types and output that several verbs share."""

from __future__ import annotations

import argparse
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from longllava_trt.core.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from longllava_trt.core.logs import Progress

__all__ = [
    "IMAGE_SUFFIXES",
    "Subparsers",
    "add_bundle",
    "add_verb",
    "add_volume",
    "chosen_images",
    "comma_list",
    "comma_tuple",
    "count",
    "format_bytes",
    "from_zero",
    "gibibytes",
    "join_volume",
    "print_json",
    "requires_extra",
    "several",
    "shown_progress",
]

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def add_verb(
    subparsers: Subparsers, name: str, *, help_text: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add one verb with the options that every verb has."""
    parser = subparsers.add_parser(
        name,
        help=help_text,
        description=textwrap.fill(description, 79),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="make the last line of stdout one JSON document"
    )
    add_volume(output)
    return parser


def add_volume(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, before_verb: bool = False
) -> None:
    """Add how much is said; `join_volume` makes one of what stands before the verb and after it."""
    suffix = "_before_verb" if before_verb else ""
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument(
        "-v",
        "--verbose",
        dest=f"verbose{suffix}",
        action="count",
        default=0,
        help="log one line a stage to stderr, and tracebacks; -vv logs everything",
    )
    volume.add_argument(
        "-q",
        "--quiet",
        dest=f"quiet{suffix}",
        action="store_true",
        help="no progress, no warnings",
    )


def join_volume(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Add what stood before the verb to what stands after it."""
    args.verbose += args.verbose_before_verb
    args.quiet = args.quiet or args.quiet_before_verb
    if args.verbose and args.quiet:
        parser.error("argument -q/--quiet: not allowed with argument -v/--verbose")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the bundle to work on."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by 'export'")


def count(text: str) -> int:
    """Read a whole number from 1."""
    return _whole_number(text, least=1)


def from_zero(text: str) -> int:
    """Read a whole number from 0."""
    return _whole_number(text, least=0)


def _whole_number(text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got '{text}'")
    return value


def several(read: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    """Return what reads numbers with commas between them."""
    return lambda text: tuple(read(part) for part in text.split(","))


def gibibytes(text: str) -> float:
    """Read an amount of memory."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of GiB above 0, got '{text}'")
    return value


def comma_list(text: str) -> list[str]:
    """Read words with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def comma_tuple(text: str) -> tuple[str, ...]:
    """Read words with commas between them, for an option that has such a default."""
    return tuple(comma_list(text))


def chosen_images(args: argparse.Namespace) -> list[Path]:
    """Return the files of `--image` in the order given, then those of `--images-dir` in natural order.

    Raises:
        InputError: If the folder does not exist or holds no image.
    """
    files: list[Path] = list(args.image)
    folder: Path | None = getattr(args, "images_dir", None)
    if folder is None:
        return files
    if not folder.is_dir():
        raise InputError(f"--images-dir {folder}: must be a folder; check the path")
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise InputError(
            f"--images-dir {folder}: holds no image; files must end in one of "
            + ", ".join(IMAGE_SUFFIXES)
        )
    return files + sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Turn a failed import inside the block into the name of the extra that provides it."""
    try:
        yield
    except ModuleNotFoundError as err:
        raise MissingDependencyError(
            f"'{err.name}' is not installed; this verb needs the '{extra}' extra: "
            f"pip install 'longllava-trt[{extra}]'"
        ) from err


@contextmanager
def shown_progress(args: argparse.Namespace) -> Iterator[Progress | None]:
    """Lend a progress callback that draws on stderr; None if the user wants quiet."""
    if args.quiet:
        yield None
        return
    from longllava_trt.core.logs import terminal_progress

    with terminal_progress() as progress:
        yield progress


def print_json(document: Any) -> None:
    """Print one JSON document as one line."""
    print(json.dumps(document), flush=True)


def format_bytes(nbytes: int) -> str:
    """Write a size for people: `2.1 MB`; powers of a thousand, as file systems are sold."""
    size, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"
