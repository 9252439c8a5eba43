"""Exports that are killed at every kind of moment; run by `test_resume.py` in a process of its own.

    python tests/export/killed_exports.py CHECKPOINT FOLDER QUANT SEED TRACES

Each export runs in a forked child, which kills itself at a chosen one of the moments at which it touches the file
system or has written a part of a file. Stages are traced once. Prints one JSON document.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from longllava_trt.core import safetensors_writer
from longllava_trt.export import bundle as bundle_module
from longllava_trt.export.quantisation import expert_writer
from tests.export.conftest import traced_once
from tests.export.stored_traces import stored_in

_EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
_POINTS = 8


def main() -> None:
    """Kill, look, go on; compare."""
    checkpoint, folder, traces = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[5])
    quant, seed = sys.argv[3:5]
    bundle_module.trace_stage = stored_in(traces)  # type: ignore[attr-defined]
    bundle_module._export_stage = traced_once()

    def export(target: Path) -> None:
        bundle_module.export_bundle(
            checkpoint,
            target,
            stages=["embed", "decoder"],
            moe_quant=quant,
            overwrite=True,
        )

    export(folder / "whole")
    whole = contents(folder / "whole")
    moments = count_moments(partial(export, folder / "counted"), folder)
    points = sorted(random.Random(seed).sample(range(moments), _POINTS))
    killed, wrong = 0, []
    for point in points:
        home = folder / f"at-{point}"
        home.mkdir()
        if point % 2:
            # there is a bundle already, of the same kind and of other content
            shutil.copytree(folder / "whole", home / "out")
            (home / "out/generation_config.json").write_text("{}")
        again = partial(export, home / "out")
        # twice, the second time earlier or later in what is left to do
        for at in (point, point // 2 + 3):
            killed += run_killed(again, home, at=at)
            wrong += [f"{point}: {problem}" for problem in half_published(home, whole)]
        run_killed(again, home, at=None)
        if contents(home / "out") != whole:
            wrong.append(f"{point}: the bundle differs")
        if [p.name for p in home.iterdir()] != ["out"]:
            wrong.append(f"{point}: left {sorted(p.name for p in home.iterdir())}")
        shutil.rmtree(home)
    found = {"moments": moments, "points": points, "killed": killed, "wrong": wrong}
    sys.stdout.write(json.dumps(found) + "\n")


def contents(bundle: Path) -> dict[str, bytes]:
    """Return every file's bytes."""
    files = (p for p in bundle.rglob("*") if p.is_file())
    return {p.relative_to(bundle).as_posix(): p.read_bytes() for p in files}


def half_published(home: Path, whole: dict[str, bytes]) -> list[str]:
    """Say what is wrong with a target that is there."""
    out = home / "out"
    if not out.exists():
        return []
    found = contents(out)
    if found == whole:
        return []
    only_old = found.keys() == whole.keys() and found["generation_config.json"] == b"{}"
    return [] if only_old else [f"half a bundle: {sorted(found)}"]


def count_moments(export: Callable[[], None], folder: Path) -> int:
    """Return at how many moments an export touches what is below a folder."""
    report = folder / "count"
    if os.fork() == 0:
        seen = watch(folder, at=None)
        export()
        report.write_text(str(len(seen)))
        os._exit(0)
    os.wait()
    return int(report.read_text())


def run_killed(export: Callable[[], None], home: Path, *, at: int | None) -> bool:
    """Export in a child; tell whether it was killed. It may be done before its moment comes."""
    if (child := os.fork()) == 0:
        watch(home, at=at)
        export()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}, f"an export ended with {code}"
    assert at is not None or code == 0
    return code != 0


def watch(folder: Path, *, at: int | None) -> list[str]:
    """Collect the moments at which this process touches a folder; at one of them, kill it."""
    seen: list[str] = []
    prefix = str(folder)

    def pass_moment(event: str) -> None:
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(event)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and str(arguments[0]).startswith(prefix):
            pass_moment(event)

    write = safetensors_writer.write_safetensors

    def watched(path: Path, layout: Any, content: Iterable[memoryview], **options: Any) -> None:
        def moments() -> Iterator[memoryview]:
            for block in content:
                yield block
                pass_moment("write")

        write(path, layout, moments(), **options)

    vars(expert_writer)["write_safetensors"] = watched
    sys.addaudithook(hook)
    return seen


if __name__ == "__main__":
    main()
