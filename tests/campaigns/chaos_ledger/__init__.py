"""The campaign against the ledger: many calls, everything that can go wrong, and then the books are compared.

    make chaos-ledger                              5,000 calls
    python -m tests.campaigns.chaos_ledger --calls 500 --seed 7

`provider.py` is two language models' endpoints that misbehave and write down what they served; `traffic.py` sends the
calls, cancels some and ends the server now and then; `books.py` compares the ledger with what was written down.
"""
