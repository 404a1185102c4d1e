"""Tests of the Python client and the `quintet` command against a small gRPC server with simple rules for models.

Read first: `small_server.py` (the server), `recorder.py` (records calls, makes them fail), `conftest.py` (fixtures).
"""
