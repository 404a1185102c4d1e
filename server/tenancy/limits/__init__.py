"""Limits of tenants over time: rates, concurrent calls, budgets; in memory for one server, in Redis for several.

Read first: `limit_set.py` (what limits a call), `memory.py` (a decision), `redis.py` (the same in one script).
A decision is one step for all limits of a call: all admit it and count it, or one refuses it and none counts it.
"""
