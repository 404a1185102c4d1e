"""Tenants: who may call, and how much.

`tenants_file.py` reads the TOML file of tenants and follows its changes; `parsing_process.py` parses large ones.
`api_keys.py` checks keys. `limits/` decides about each call: rates, calls at once, and budgets, in memory for one
server and in Redis for several.

May import `domain`. Read first: `tenants.py`, `limits/limiter.py`, `limits/limit_set.py`.

Words: a Tenant has Roles, ApiKeys and Limits. Grants say which tenants may read, write or own a collection. A Budget is
a Limit for a day or a month. An account counts what is spent or reserved of a budget in one period; its baseline is
what the ledger said when counting began. A Permit is an admitted call: it reserves the estimated cost, and is settled
with the actual one. A Limiter is degraded while Redis does not answer and this server decides alone with its share of
the limits.
"""
