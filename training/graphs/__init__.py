"""Models as computation graphs: BERT and boosted trees written as ONNX, and measured as the server runs them.

May import `server.models`, `server.inference`, onnx, torch, transformers and scikit-learn.

Read first: bert.py (the graph of a BERT), arithmetic.py (its products in fp32 or int8), evaluate.py (running a graph).

Engine: "onnx" (fp32) or "onnx-int8"; each has a graph file of its own. Row: the numbers of one token.
"""
