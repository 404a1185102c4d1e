"""The ledger of usage, and the accounting of a call.

Every call that can cost has an entry: opened on disk before a provider is asked, settled once when the call has ended.
If the server dies before that, another one marks the entry as lost. While the database is away, such calls are refused,
and what is to be settled waits in memory and in a file.

May import `domain` and, on the ledger's threads, SQLAlchemy and psycopg.

Read first: `server/domain/usage.py` (Entry and Ledger), `writer.py` (the thread), `entries.py` (what is written).

Words: an entry is a call in the ledger; to open and to settle are its two writes; an instance is a server that writes;
a repeated request has the id and the content of one that was charged, and is not charged.
"""
