"""onnxruntime sessions that run on the calling thread alone."""

from pathlib import Path

import onnxruntime


def open_session(graph: Path) -> onnxruntime.InferenceSession:
    """A session. Several threads may run it at once, without the GIL. docs/notes/batching.md: no option gains more."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # lanes are the parallelism
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
