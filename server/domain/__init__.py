"""What every room may import: plain values, Protocols, errors and small mechanics. Imports the standard library alone.

Read first: `errors.py` (the tree of exceptions), `context.py` (the running call), `models.py` (what a model says of
itself).

Context             a running call: caller, deadline, timings. Every RPC has one
Caller              the tenant that calls, with its roles and what it may use (access.py)
Right               what a method does to a resource; Grants say which tenants may
Cost                tokens and millionths of money
ConcurrencyLimiter  at most so many long pieces of work at once, with a bounded queue
supervised          a background task that starts again after an exception
ReloadingFile       a file that an operator edits; the latest good content is in use
"""
