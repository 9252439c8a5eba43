"""Export the published sizes from sparse checkpoints, and hold time, memory and disk against the limits.

Prints a table and, as its last line, one JSON document. Exit status 1 if a limit is missed.

    python -m benchmarks.export_at_scale
    python -m benchmarks.export_at_scale --presets 9b --folder scratch
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.commands import longllava

PARAMETERS = {"9b": 9_615_177_600, "53b": 51_894_810_496}
"""Of the published models."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Cost of one export."""

    seconds: float
    peak_rss_bytes: int
    new_disk_bytes: int
    linked_bytes: int
    parameters: int


LIMITS = {"seconds": 120, "peak_rss_bytes": 4 * 2**30, "new_disk_bytes": 100 * 10**6}


def main() -> int:
    """Measure every preset that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--presets", nargs="+", choices=PARAMETERS, default=list(PARAMETERS), help="which sizes"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'preset':8}" + "".join(f"{field.name:>18}" for field in fields(Figures)))
    figures, misses = {}, []
    for preset in args.presets:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            found = measure(preset, Path(scratch))
        figures[preset] = asdict(found)
        print(f"{preset:8}" + "".join(f"{value:>18,}" for value in figures[preset].values()))
        misses += [f"{preset}: {miss}" for miss in missed(found, PARAMETERS[preset])]
    print("".join(f"missed: {miss}\n" for miss in misses), end="")
    print(json.dumps({"figures": figures, "limits": LIMITS, "missed": misses}))
    return 1 if misses else 0


def measure(preset: str, folder: Path) -> Figures:
    """Export one preset in a process of its own."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    longllava("synth", checkpoint, "--preset", preset, "--sparse")
    before = disk_bytes(folder)
    begin = time.monotonic()
    report, peak_rss_bytes = longllava("export", checkpoint, bundle)
    seconds = time.monotonic() - begin
    return Figures(
        seconds=round(seconds, 1),
        peak_rss_bytes=peak_rss_bytes,
        new_disk_bytes=disk_bytes(folder) - before,
        linked_bytes=report["linked_bytes"],
        parameters=longllava("inspect", checkpoint)[0]["parameters"]["total"],
    )


def disk_bytes(folder: Path) -> int:
    """Count the blocks below a folder, those of linked files once."""
    found = [path.stat() for path in folder.rglob("*")]
    return 512 * sum({stat.st_ino: stat.st_blocks for stat in found}.values())


def missed(found: Figures, parameters: int) -> list[str]:
    """Say which limits do not hold."""
    misses = [
        f"{name} must be at most {limit}, got {getattr(found, name)}"
        for name, limit in LIMITS.items()
        if getattr(found, name) > limit
    ]
    if found.parameters != parameters:
        misses.append(f"parameters must be {parameters}, got {found.parameters}")
    return misses


if __name__ == "__main__":
    sys.exit(main())
