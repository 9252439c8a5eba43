"""Values of a graph that are stored weights, or stored weights joined, and their bytes.

Export puts a Cast behind a weight whose dtype differs, and joins experts with Concat and Unsqueeze.
In memory that is no more than bytes in a row, so whoever runs the graph may read them where they
are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["StoredValue", "StoredValues"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """A value whose content is that of initializers, one after another, each cast to one dtype."""

    weights: tuple[onnx.TensorProto, ...]
    """Initializers, in the order of their content."""
    shape: tuple[int, ...]
    """Row-major."""
    dtype: int
    """Of the value, as ONNX numbers dtypes; that of an initializer may be another."""

    @property
    def is_as_stored(self) -> bool:
        """Whether nothing has cast it: two casts in turn are not one."""
        return all(weight.data_type == self.dtype for weight in self.weights)

    @property
    def is_external(self) -> bool:
        """Whether all of its bytes are in files beside the graph."""
        return all(weight.external_data for weight in self.weights)


class StoredValues:
    """The stored values of a graph's top level, by name.

    Args:
        graph: Nodes in an order in which they can run, as ONNX demands.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._values = {
            init.name: StoredValue(weights=(init,), shape=tuple(init.dims), dtype=init.data_type)
            for init in graph.initializer
        }
        for node in graph.node:
            if (value := self._made_by(node)) is not None:
                self._values[node.output[0]] = value

    def get(self, name: str) -> StoredValue | None:
        """Return what a value is made of; None if anything is computed for it."""
        return self._values.get(name)

    def items(self) -> Iterator[tuple[str, StoredValue]]:
        """Yield name and value, initializers first."""
        yield from self._values.items()

    def _made_by(self, node: onnx.NodeProto) -> StoredValue | None:
        from onnx import helper

        if node.domain or not node.input or (first := self._values.get(node.input[0])) is None:
            return None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Cast":
            to = attributes["to"]
            return replace(first, dtype=to) if first.is_as_stored or to == first.dtype else None
        if node.op_type == "Unsqueeze":
            return self._unsqueezed(first, node)
        if node.op_type == "Concat" and attributes["axis"] == 0:
            return self._joined(node)
        return None

    def _unsqueezed(self, value: StoredValue, node: onnx.NodeProto) -> StoredValue | None:
        """Return a value with axes of one put in, if the axes are constants of the graph itself."""
        from onnx import numpy_helper

        axes = self._values.get(node.input[1]) if len(node.input) == 2 else None
        if axes is None or len(axes.weights) != 1 or axes.is_external:
            return None
        places = numpy_helper.to_array(axes.weights[0]).reshape(-1).tolist()
        rank = len(value.shape) + len(places)
        added, extents = {place % rank for place in places}, iter(value.shape)
        shape = tuple(1 if axis in added else next(extents) for axis in range(rank))
        return replace(value, shape=shape)

    def _joined(self, node: onnx.NodeProto) -> StoredValue | None:
        """Return values joined along the first axis: their bytes in a row."""
        found = [self._values.get(name) for name in node.input]
        values = [value for value in found if value is not None]
        if len(values) != len(found) or len({(v.dtype, v.shape[1:]) for v in values}) != 1:
            return None
        return StoredValue(
            weights=tuple(weight for value in values for weight in value.weights),
            shape=(sum(value.shape[0] for value in values), *values[0].shape[1:]),
            dtype=values[0].dtype,
        )
