"""UsageService: shows what calls consumed. service.py reads the ledger through the Protocols of `domain/usage.py`."""
