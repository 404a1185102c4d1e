"""Writes an ONNX graph node by node, with the operators of ONNX and of onnxruntime."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

_OPSET = 18
_ONNXRUNTIME = "com.microsoft"
_IR_VERSION = 9  # belongs to the opset; onnxruntime reads it since 1.15


class Graph:
    """Nodes and constants in the order in which they are added. A tensor is referred to by its name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def constant(self, name: str, value: Any) -> str:
        """A constant; a second one of the same name is not added."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        """A constant: int64, one dimension."""
        return self.constant(f"integers{list(values)}", np.array(values, np.int64))

    def add(self, operator: str, *inputs: str, extra: bool = False, **attributes: Any) -> str:
        """The result of an operator; `extra` means one of onnxruntime's own."""
        name = f"{operator}_{len(self._nodes)}"
        domain = _ONNXRUNTIME if extra else ""
        self._nodes.append(helper.make_node(operator, inputs, [name], name, domain=domain, **attributes))
        return name

    def model(self, inputs: Sequence[ValueInfoProto], result: str, output: str, width: int) -> ModelProto:
        """A checked model from `inputs` to float32 `output` [batch, width]."""
        self._nodes.append(helper.make_node("Identity", [result], [output], output))
        graph = helper.make_graph(
            self._nodes,
            "quintet",
            list(inputs),
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_ONNXRUNTIME, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="quintet")
        onnx.checker.check_model(model)
        return model
