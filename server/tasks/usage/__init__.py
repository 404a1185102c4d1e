"""UsageService shows what calls consumed: service.py reads the ledger."""
