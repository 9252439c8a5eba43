"""Matrices of float32 transposed in registers, a square of vectors at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba.core import cgutils

from longllava_trt.plugins_trt.cpu.vector_ir import (
    FLOAT,
    I64,
    LANES,
    at,
    load,
    of_words,
    store,
    transposed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["turn", "turning"]


def turning(name: str, change: Callable[[Any, Any], Any] = lambda _, value: value) -> Any:
    """Return `turn` under another name, each number or vector changed on the way by what is written."""

    def square(builder: Any, source: Any, step: Any, out: Any, out_step: Any) -> None:
        rows = [load(builder, at(builder, source, step, I64(r)), FLOAT, None) for r in range(LANES)]
        for r, row in enumerate(transposed(builder, rows)):
            store(builder, change(builder, row), at(builder, out, out_step, I64(r)), None)

    def corner(builder: Any, place: tuple[Any, ...], rows: Any, columns: Any) -> None:
        # not masked vectors: lanes beyond the last row may lie in a page that does not exist, which is
        # harmless and, on a virtual machine, slow
        source, step, out, out_step = place
        with cgutils.for_range(builder, rows) as row, cgutils.for_range(builder, columns) as column:
            here = at(builder, at(builder, source, step, row.index), I64(4), column.index)
            there = at(builder, at(builder, out, out_step, column.index), I64(4), row.index)
            value = builder.load(builder.inttoptr(here, FLOAT.as_pointer()))
            builder.store(change(builder, value), builder.inttoptr(there, FLOAT.as_pointer()))

    def write(builder: Any, *words: Any) -> None:
        source, step, rows, columns, out, out_step = words
        lanes = I64(LANES)
        with (
            cgutils.for_range_slice(builder, I64(0), rows, lanes) as (i, _),
            cgutils.for_range_slice(builder, I64(0), columns, lanes) as (j, _),
        ):
            here = builder.add(at(builder, source, step, i), builder.mul(j, I64(4)))
            there = builder.add(at(builder, out, out_step, j), builder.mul(i, I64(4)))
            left = [builder.sub(size, index) for size, index in ((rows, i), (columns, j))]
            exist = [builder.icmp_signed(">=", count, lanes) for count in left]
            with builder.if_else(builder.and_(*exist)) as (whole, part):
                with whole:
                    square(builder, here, step, there, out_step)
                with part:
                    counts = [
                        builder.select(enough, lanes, count)
                        for enough, count in zip(exist, left, strict=True)
                    ]
                    corner(builder, (here, step, there, out_step), *counts)

    return of_words(name, 6, write)


turn = turning("turn")
"""Write a matrix transposed.

Words: the matrix, bytes from a row of it to the next, its rows and columns; where to write, bytes from a row there to the
next.
"""
