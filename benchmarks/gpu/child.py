"""One step in its own process: appends its rows to the run's file as they come.

    python -m benchmarks.gpu.child STEP CONTEXT     (CONTEXT is JSON, from `BenchContext.to_json`)

Started by `run`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

from benchmarks.gpu.context import ROWS_FILE, BenchContext
from benchmarks.gpu.steps import STEPS, load


def _main(name: str, context: BenchContext) -> int:
    # before Triton is imported, and it decorates its kernels
    os.environ["TRITON_INTERPRET"] = "1" if context.is_dry else "0"
    step = next(step for step in STEPS if step.name == name)
    with (context.out / ROWS_FILE).open("a", encoding="utf-8") as file:
        try:
            for row in load(step)(context):
                file.write(json.dumps({"step": name, **row}) + "\n")
                file.flush()
        except Exception:  # noqa: BLE001 - whatever it is, the parent reads it in the log
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], BenchContext.from_json(sys.argv[2])))
