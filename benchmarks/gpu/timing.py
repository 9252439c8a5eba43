"""How long a call takes on the device, launch overhead of Python left out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["sets_beyond_cache", "time_ms"]

_WANTED_MS = 150.0
_MAX_SETS = 256
_CALLS = 8


def sets_beyond_cache(nbytes: float, *, device: str) -> int:
    """Return the number of input sets to rotate over, so that no set is found in the L2 cache.

    Args:
        nbytes: Size of one set.
        device: `cuda` or `cpu`, as PyTorch names it.
    """
    if device == "cpu":
        return 2
    import torch

    cache: int = torch.cuda.get_device_properties(0).L2_cache_size
    return min(_MAX_SETS, max(1, -(-2 * cache // max(int(nbytes), 1))))


def time_ms(
    call: Callable[[int], object], *, device: str, sets: int = 1, is_graph: bool = True
) -> float:
    """Return the median time of one call in ms.

    Args:
        call: Takes the number of a set of inputs, 0 to ``sets`` - 1.
        device: `cuda` times with events; `cpu` with a clock, once.
        sets: Sets of inputs. All of them make one measurement, so that a call finds its inputs out of the cache.
        is_graph: Capture the calls once and time replays. False where a call waits for the device.
    """
    if device == "cpu":
        begin = time.perf_counter()
        call(0)
        return 1e3 * (time.perf_counter() - begin)
    import torch

    # several even of one set: a graph takes some microseconds to begin
    calls = max(sets, _CALLS) if is_graph else sets

    def once() -> None:
        for number in range(calls):
            call(number % sets)

    replay = _captured(once) if is_graph else once
    replay()
    torch.cuda.synchronize()
    first = _event_ms(replay)
    repeats = int(min(50, max(5, _WANTED_MS / max(first, 1e-3))))
    return statistics.median(_event_ms(replay) for _ in range(repeats)) / calls


def _captured(once: Callable[[], None]) -> Callable[[], None]:
    """Return a replay of what a function launches."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        once()  # compiles, and loads modules, which a capture must not
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph: torch.cuda.CUDAGraph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay


def _event_ms(run: Callable[[], None]) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
