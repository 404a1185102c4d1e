"""How the matrices of a graph are multiplied: in fp32, or in int8 with a scale for every row.

onnxruntime's own quantisation has one scale for all activations that enter a multiplication. In BERT a few of them are
ten times larger than the rest: they take the range, and the others are left with a handful of levels. Besides, the
scale spans the batch, so that a text's result depends on its neighbours. Here every row, which is a token, has a scale
of its own ("per token" in ZeroQuant, Yao et al., 2022): nothing has to be calibrated, and texts may be run together.

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
_MIDDLE = 128  # the byte that stands for zero, where values have both signs


class Operand(NamedTuple):
    """Rows that are to be multiplied by one or several matrices. In fp32 nothing but `values` is used.

    `values` x `scales` are the rows plus `shift`; `zero` is the byte that stands for zero.
    """

    values: str
    scales: str = ""
    zero: int = 0
    shift: float = 0.0


class Arithmetic(Protocol):
    """What a graph's matrices are multiplied with. Names are those of constants, and unlike."""

    def operand(self, graph: Graph, rows: str, count: str, least: float | None = None) -> Operand:
        """float32 `rows` [`count`, width] as they enter multiplications. None of them is below `least`, if given."""
        ...

    def multiply(self, graph: Graph, operand: Operand, weight: Floats, bias: Floats, name: str) -> tuple[str, Floats]:
        """The rows times `weight` [width, columns], and the bias [columns] that is still to be added to them."""
        ...

    def look_up(self, graph: Graph, table: Floats, ids: str, name: str) -> str:
        """The rows of `table` with these ids."""
        ...


class Exact:
    """fp32"""

    def operand(self, graph: Graph, rows: str, count: str, least: float | None = None) -> Operand:
        """As they are."""
        return Operand(rows)

    def multiply(self, graph: Graph, operand: Operand, weight: Floats, bias: Floats, name: str) -> tuple[str, Floats]:
        """One operator."""
        return graph.add("MatMul", operand.values, graph.constant(name, weight)), bias

    def look_up(self, graph: Graph, table: Floats, ids: str, name: str) -> str:
        """One operator."""
        return graph.add("Gather", graph.constant(name, table), ids)


class Int8:
    """Bytes. A row of zeros has no scale, but no row of a BERT is one: there are biases everywhere."""

    def operand(self, graph: Graph, rows: str, count: str, least: float | None = None) -> Operand:
        """Rows of both signs are scaled by their largest value; above `least` all 256 levels are used."""
        if least is None:
            largest = graph.add("ReduceMax", graph.add("Abs", rows), graph.integers(-1))
            zero, levels, shift = _MIDDLE, 127.0, 0.0
        else:
            rows = graph.add("Sub", rows, graph.constant(f"least {least}", np.float32(least)))
            largest = graph.add("ReduceMax", rows, graph.integers(-1))
            zero, levels, shift = 0, 255.0, -least
        scales = graph.add("Mul", largest, graph.constant(f"1 / {levels}", np.float32(1 / levels)))
        quantise = [rows, graph.add("Reshape", scales, graph.integers(-1))]
        if zero:  # one for each row, too
            middle = numpy_helper.from_array(np.array([zero], np.uint8))
            quantise.append(graph.add("ConstantOfShape", count, value=middle))
        return Operand(graph.add("QuantizeLinear", *quantise, axis=0), scales, zero, shift)

    def multiply(self, graph: Graph, operand: Operand, weight: Floats, bias: Floats, name: str) -> tuple[str, Floats]:
        """The bias takes back what the operand was shifted by."""
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
        """The table takes a byte a number, too, with a scale for each of its rows."""
        scales = _scales(table, _TABLE_LEVELS, axis=1)
        levels = graph.constant(name, np.rint(table / scales).astype(np.int8))
        rows = graph.add("Cast", graph.add("Gather", levels, ids), to=TensorProto.FLOAT)
        return graph.add("Mul", rows, graph.add("Gather", graph.constant(f"{name}.scales", scales), ids))


def _scales(matrix: Floats, levels: int, axis: int) -> Floats:
    """So that the largest value along `axis` is `levels`; 1 where all are next to nothing."""
    largest = np.abs(matrix).max(axis=axis, keepdims=True)
    return np.where(largest > 1e-30, largest / levels, 1).astype(np.float32)
