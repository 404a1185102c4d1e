"""The server. Every room says in its package docstring what lives in it, what it may import, and what to read first.

domain          types, Protocols and errors that every room shares
models          artefacts on disk, and the manager that loads, replaces and evicts models
tenancy         tenants, API keys and limits
inference       what computes: the scheduler, text models, the result cache
vectorstore     collections of documents and their vectors on disk
usage           the ledger, and the accounting of a call
rpc             what surrounds every call: identity, admission, validation, limits, errors
tasks           one folder a task: its service and its engines
observability   metrics, traces, logs

`app.py` alone knows all of them. docs/architecture.md has a picture and follows three calls through the rooms.
"""
