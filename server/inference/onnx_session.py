"""How graphs are run with onnxruntime: on the calling thread alone."""

from pathlib import Path

import onnxruntime


def open_session(graph: Path) -> onnxruntime.InferenceSession:
    """A session on one thread. It may be run from several threads at once, and releases the GIL meanwhile.

    The other options stay as they are. Measured with MiniLM-L6 and 14 tokens (medians of twelve rounds of CPU time):
    without prepacking fp32 takes 1.7 times as long and int8 1.1 times; without the arena, without memory patterns, with
    approximate GELU, with denormals as zero, with dynamic blocks or with I/O binding it is the same within 12 %,
    which is the noise.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # lanes are the parallelism
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
