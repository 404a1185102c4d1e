"""Writes gradient boosted trees of scikit-learn as an ONNX graph in double precision.

    features [rows, features] float64 -> sum [rows, 1] float64

One operator, TreeEnsemble of ai.onnx.ml 5, evaluates all trees and compares in float64, so no split changes.
skl2onnx 1.20 writes the older operator, whose sums are float32, and fails on scikit-learn 1.9. Like skl2onnx, this
module reads the nodes in `_predictors`, for which scikit-learn has no public name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import HistGradientBoostingRegressor

_LESS_OR_EQUAL, _SUM = 0, 1  # values of nodes_modes and aggregate_function
_OPSETS = {"": 17, "ai.onnx.ml": 5}
_IR_VERSION = 10


def export_trees(boosting: HistGradientBoostingRegressor, target: Path) -> float:
    """Write the trees, which must split on numbers only; return the constant to add to their sum."""
    ensemble = _Ensemble()
    for (predictor,) in boosting._predictors:
        ensemble.add(predictor.nodes)
    graph = helper.make_graph(
        [helper.make_node("TreeEnsemble", ["features"], ["sum"], domain="ai.onnx.ml", **ensemble.attributes())],
        "trees",
        [helper.make_tensor_value_info("features", TensorProto.DOUBLE, ["rows", boosting.n_features_in_])],
        [helper.make_tensor_value_info("sum", TensorProto.DOUBLE, ["rows", 1])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)
    return float(boosting._baseline_prediction.item())


class _Ensemble:
    """Collects the attributes of a TreeEnsemble. Inner nodes and leaves are numbered separately."""

    def __init__(self) -> None:
        self._roots: list[int] = []
        self._nodes: list[dict[str, Any]] = []
        self._leaves: list[float] = []

    def add(self, nodes: Any) -> None:
        """Add a tree: a structured array of nodes; the first is the root."""
        is_leaf = nodes["is_leaf"].astype(bool)
        if is_leaf[0] or nodes["is_categorical"].any():
            raise ValueError("a tree does not split, or splits on categories")
        number = np.where(is_leaf, len(self._leaves) + is_leaf.cumsum(), len(self._nodes) + (~is_leaf).cumsum()) - 1
        self._roots.append(len(self._nodes))
        self._leaves += nodes["value"][is_leaf].tolist()
        self._nodes += [
            {
                "nodes_featureids": int(node["feature_idx"]),
                "nodes_splits": float(node["num_threshold"]),
                "nodes_missing_value_tracks_true": int(node["missing_go_to_left"]),
                "nodes_truenodeids": int(number[node["left"]]),
                "nodes_trueleafs": int(is_leaf[node["left"]]),
                "nodes_falsenodeids": int(number[node["right"]]),
                "nodes_falseleafs": int(is_leaf[node["right"]]),
            }
            for node in nodes[~is_leaf]
        ]

    def attributes(self) -> dict[str, Any]:
        """All attributes of the operator."""
        columns: dict[str, Any] = {name: [node[name] for node in self._nodes] for name in self._nodes[0]}
        columns["nodes_splits"] = _tensor(columns["nodes_splits"], np.float64)
        return {
            **columns,
            "nodes_modes": _tensor([_LESS_OR_EQUAL] * len(self._nodes), np.uint8),
            "tree_roots": self._roots,
            "leaf_weights": _tensor(self._leaves, np.float64),
            "leaf_targetids": [0] * len(self._leaves),
            "n_targets": 1,
            "aggregate_function": _SUM,
        }


def _tensor(values: list[Any], kind: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind))
