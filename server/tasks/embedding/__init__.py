"""Embedding of texts: `service.py` has the contract and the row of the table of services.

The embedder is the one of `tasks/rag`; `inference/text.py` runs it. May import domain, models, and rpc's helpers.
"""
