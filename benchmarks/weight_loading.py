"""Load weights through the ring, beside reading the same bytes and beside NumPy doing the same whole.

Contestants take turns; medians are compared. Prints a table and, as its last line, one JSON document.

    python -m benchmarks.weight_loading
    python -m benchmarks.weight_loading --mib 2048 --repeats 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.runtime.backends.weight_loader import HostMemory, load_weights

_EXPERTS = 16
_BLOCK = 16 * 2**20


def main() -> int:
    """Measure experts that are stacked from one file, as they are stored and cast."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default 1024)")
    parser.add_argument("--repeats", type=int, default=5, help="of each (default 5)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        file = Path(scratch, "weights.bin")
        _write(file, args.mib)
        results = {
            dtype: _compare(_contestants(file, dtype), args.repeats)
            for dtype in ("bfloat16", "float16")
        }
    nbytes = args.mib * 2**20
    print(f"{'stored as bfloat16, wanted as':30}{'contestant':>14}{'GB/s':>8}{'of a read':>11}")
    for dtype, seconds in results.items():
        for name, median in seconds.items():
            share = seconds["read"] / median
            print(f"{dtype:30}{name:>14}{nbytes / median / 1e9:>8.2f}{share:>11.2f}")
    print(json.dumps({"mib": args.mib, "seconds": results}))
    return 0


def _write(file: Path, mib: int) -> None:
    random = np.random.default_rng(0)
    with file.open("wb") as out:
        for _ in range(mib):
            out.write(
                random.standard_normal(2**19, np.float32).astype(ml_dtypes.bfloat16).tobytes()
            )


def _contestants(file: Path, dtype: str) -> dict[str, Callable[[], object]]:
    size = file.stat().st_size // _EXPERTS
    parts = tuple(
        WeightPart(name=str(i), file=file.name, offset=i * size, nbytes=size, dtype="bfloat16")
        for i in range(_EXPERTS)
    )
    weight = EngineWeight(name="x", shape=(_EXPERTS, size // 2), dtype=dtype, parts=parts)

    def read() -> None:
        buffer = memoryview(bytearray(_BLOCK))
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass

    def whole() -> object:
        stored = [
            np.fromfile(file, ml_dtypes.bfloat16, size // 2, offset=part.offset) for part in parts
        ]
        return np.stack(stored).astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)

    def ring() -> object:
        return load_weights(file.parent, [weight], HostMemory())

    return {"read": read, "NumPy, whole": whole, "ring": ring}


def _compare(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, work in contestants.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
