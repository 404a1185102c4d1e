"""Matrix products of a graph: in fp32, or in int8 with a scale for each row.

onnxruntime's own quantisation has one scale for all activations of a product. In BERT a few activations are ten times
larger than the rest, which leaves a handful of levels for the others. The scale also spans the batch, so the result for
a text depends on the other texts. Here every row (a token) has its own scale ("per token" in ZeroQuant, Yao et al.,
2022): nothing is calibrated, and the result for a text does not depend on its batch.

Weights have one scale for each output column and use seven bits: without VNNI, x86 adds products of bytes in pairs in
16 bits, which seven bits cannot overflow, so the result is the same on every such machine.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from training.graphs.onnx_graph import Graph

Floats = NDArray[np.float32]
_WEIGHT_LEVELS = 63  # on either side of zero
_TABLE_LEVELS = 127
_MIDDLE = 128  # the zero point of values of both signs


class Operand(NamedTuple):
    """Rows to be multiplied by one or several matrices. In fp32 only `values` is used.

    (`values` - `zero`) x `scales` are the rows plus `shift`.
    """

    values: str
    scales: str = ""
    zero: int = 0
    shift: float = 0.0


class Arithmetic(Protocol):
    """The products of a graph. `name` is that of the constant, and unique in the graph."""

    def operand(self, graph: Graph, rows: str, count: str, least: float | None = None) -> Operand:
        """float32 `rows` [`count`, width], ready to be multiplied; `least` is a lower bound of their values."""
        ...

    def multiply(self, graph: Graph, operand: Operand, weight: Floats, bias: Floats, name: str) -> tuple[str, Floats]:
        """The rows times `weight` [width, columns], and the bias [columns] that the caller must add."""
        ...

    def look_up(self, graph: Graph, table: Floats, ids: str, name: str) -> str:
        """The rows of `table` with these ids."""
        ...


class Exact:
    """fp32."""

    def operand(self, graph: Graph, rows: str, count: str, least: float | None = None) -> Operand:
        """Unchanged."""
        return Operand(rows)

    def multiply(self, graph: Graph, operand: Operand, weight: Floats, bias: Floats, name: str) -> tuple[str, Floats]:
        """One operator."""
        return graph.add("MatMul", operand.values, graph.constant(name, weight)), bias

    def look_up(self, graph: Graph, table: Floats, ids: str, name: str) -> str:
        """One operator."""
        return graph.add("Gather", graph.constant(name, table), ids)


class Int8:
    """int8. A row of zeros would have no scale; a BERT has none, since every layer adds a bias."""

    def operand(self, graph: Graph, rows: str, count: str, least: float | None = None) -> Operand:
        """Rows of both signs are scaled by their largest absolute value; with `least` all 256 levels are used."""
        if least is None:
            largest = graph.add("ReduceMax", graph.add("Abs", rows), graph.integers(-1))
            zero, levels, shift = _MIDDLE, 127.0, 0.0
        else:
            rows = graph.add("Sub", rows, graph.constant(f"least {least}", np.float32(least)))
            largest = graph.add("ReduceMax", rows, graph.integers(-1))
            zero, levels, shift = 0, 255.0, -least
        scales = graph.add("Mul", largest, graph.constant(f"1 / {levels}", np.float32(1 / levels)))
        quantise = [rows, graph.add("Reshape", scales, graph.integers(-1))]
        if zero:  # one zero point a row
            middle = numpy_helper.from_array(np.array([zero], np.uint8))
            quantise.append(graph.add("ConstantOfShape", count, value=middle))
        return Operand(graph.add("QuantizeLinear", *quantise, axis=0), scales, zero, shift)

    def multiply(self, graph: Graph, operand: Operand, weight: Floats, bias: Floats, name: str) -> tuple[str, Floats]:
        """The returned bias compensates for the operand's shift."""
        scales = _scales(weight, _WEIGHT_LEVELS, axis=0)
        levels = np.rint(weight / scales).astype(np.int8)
        product = graph.add(
            "MatMulIntegerToFloat",
            operand.values,
            graph.constant(name, levels),
            graph.constant("one", np.float32(1)),
            graph.constant(f"{name}.scales", scales[0]),
            graph.constant(f"byte {operand.zero}", np.uint8(operand.zero)),
            extra=True,
        )
        columns = (levels * scales.astype(np.float64)).sum(axis=0)
        return graph.add("Mul", product, operand.scales), (bias - operand.shift * columns).astype(np.float32)

    def look_up(self, graph: Graph, table: Floats, ids: str, name: str) -> str:
        """The table is stored as int8, too, with a scale for each of its rows."""
        scales = _scales(table, _TABLE_LEVELS, axis=1)
        levels = graph.constant(name, np.rint(table / scales).astype(np.int8))
        rows = graph.add("Cast", graph.add("Gather", levels, ids), to=TensorProto.FLOAT)
        return graph.add("Mul", rows, graph.add("Gather", graph.constant(f"{name}.scales", scales), ids))


def _scales(matrix: Floats, levels: int, axis: int) -> Floats:
    """Scales that map the largest value along `axis` to `levels`; 1 where all values are almost 0."""
    largest = np.abs(matrix).max(axis=axis, keepdims=True)
    return np.where(largest > 1e-30, largest / levels, 1).astype(np.float32)
