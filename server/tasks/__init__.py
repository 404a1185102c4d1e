"""One folder a task. Its `service.py` converts between the contract and the domain and declares the ServiceSpec; the
other files are its engines and its ModelSpecs, which know neither gRPC nor the contract.

Read first: `classification/service.py` (the smallest), `chat/service.py` (streaming), `rag/service.py` (the largest).

A new task is a `.proto`, a folder here, and a row in `app.py`.
"""
