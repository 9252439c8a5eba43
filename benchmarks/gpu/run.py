"""Measures the kernels, the plugin library and engines on the GPU at hand, and writes what came of it.

    python -m benchmarks.gpu.run --out FOLDER [--budget SECONDS] [--only NAME...] [--library FILE]
                                 [--wheels FOLDER] [--bundle FOLDER] [--scale FOLDER] [--mamba FOLDER]
    python -m benchmarks.gpu.run --out FOLDER --dry-run      tiny sizes on the CPU, to see that it runs

Needs PyTorch and Triton, and nothing of this project installed: run it from the root of a checkout. Each step is a
process with a time limit. After every row FOLDER/results.json and results.md are written anew, so that a run that is
cut off leaves what it had. Exit status 1 if a step failed or a row says that numbers are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import ROWS_FILE, BenchContext, read_rows
from benchmarks.gpu.report import markdown
from benchmarks.gpu.steps import STEPS, Step

__all__ = ["Results", "end", "main", "wait_for"]

_POLL_SECONDS = 0.5
_LEAST_SECONDS = 15
"""With less than this left, no step is begun."""


@dataclass
class Results:
    """Contents of results.json."""

    context: BenchContext
    document: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Replace both files, so that whoever reads them finds a whole one."""
        rows = read_rows(self.context.out)
        for name, step in self.document["steps"].items():
            step["rows"] = [
                {k: v for k, v in row.items() if k != "step"} for row in rows if row["step"] == name
            ]
        self._replace("results.json", json.dumps(self.document, indent=1) + "\n")
        self._replace("results.md", markdown(self.document))

    def _replace(self, name: str, text: str) -> None:
        staging = self.context.out / f".{name}"
        staging.write_text(text, encoding="utf-8")
        staging.replace(self.context.out / name)


def main(argv: list[str] | None = None) -> int:
    """Run the steps that are asked for."""
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / ROWS_FILE).unlink(missing_ok=True)
    context = BenchContext(
        out=args.out.absolute(),
        is_dry=args.dry_run,
        library=args.library and args.library.absolute(),
        wheels=args.wheels and args.wheels.absolute(),
        bundle=args.bundle and args.bundle.absolute(),
        scale=args.scale and args.scale.absolute(),
        mamba=args.mamba and args.mamba.absolute(),
    )
    date = datetime.now(UTC).isoformat(timespec="seconds")
    command = ["python", "-m", "benchmarks.gpu.run", *(sys.argv[1:] if argv is None else argv)]
    results = Results(context, {"date": date, "command": " ".join(command), "steps": {}})
    signal.signal(signal.SIGTERM, _stop)
    deadline = time.monotonic() + args.budget
    try:
        with (context.out / "log.txt").open("w", encoding="utf-8") as log:
            for step in (s for s in STEPS if not args.only or s.name in args.only):
                _run(step, results, log=log, deadline=deadline)
    finally:
        results.write()
        print(markdown(results.document))
    return int(any(_is_bad(step) for step in results.document["steps"].values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.run", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds in all")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--library", type=Path, help="plugin library that was built beforehand")
    parser.add_argument("--wheels", type=Path, help="folder of TensorRT-RTX's wheels")
    parser.add_argument("--bundle", type=Path, help="bundle with weights and engines")
    parser.add_argument(
        "--scale", type=Path, help="folder of bundles of full size, without weights"
    )
    parser.add_argument("--mamba", type=Path, help="unpacked source of mamba-ssm")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    return parser


def _run(step: Step, results: Results, *, log: Any, deadline: float) -> None:
    """Run one step, writing results as its rows come."""
    entry: dict[str, Any] = {"about": step.about, "status": "running"}
    results.document["steps"][step.name] = entry
    limit = min(step.seconds, deadline - time.monotonic())
    if limit < _LEAST_SECONDS:
        entry["status"] = "not begun: the budget is spent"
        results.write()
        return
    log.write(f"==> {step.name}\n")
    log.flush()
    place = log.tell()
    context = json.dumps(results.context.to_json())
    begin = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu.child", step.name, context],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        entry["status"] = wait_for(child, results, until=begin + limit)
    finally:
        end(child)
        entry["seconds"] = round(time.monotonic() - begin, 1)
        if entry["status"] not in {"done", "running"}:
            entry["log"] = _tail(results.context.out / "log.txt", place)
        results.write()


def wait_for(child: subprocess.Popen[bytes], results: Results, *, until: float) -> str:
    """Return how a step ended."""
    rows, size = results.context.out / ROWS_FILE, -1
    while time.monotonic() < until:
        try:
            code = child.wait(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            now = rows.stat().st_size if rows.is_file() else 0
            if now != size:
                size = now
                results.write()
            continue
        if code < 0:
            return f"crashed: signal {signal.Signals(-code).name}"
        return "failed" if code else "done"
    return "cut off: time limit"


def end(child: subprocess.Popen[bytes]) -> None:
    """End a step and whatever it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _tail(path: Path, place: int) -> list[str]:
    """Return the end of what a step printed."""
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(place)
        return [line[:400] for line in file.read().splitlines()[-8:]]


def _is_bad(step: dict[str, Any]) -> bool:
    return step["status"] != "done" or any(row.get("ok") is False for row in step["rows"])


def _stop(*_: object) -> None:
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
