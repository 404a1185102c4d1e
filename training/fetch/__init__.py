"""Where foreign files come from: the lock file pins them, sources deliver them, the cache keeps them.

May import `server.models` (hashing, durable writes), the standard library and huggingface_hub.

Read first: lock.py (what is pinned), fetcher.py (how an input gets into the cache), cache.py (what is on disk).

Input: files that belong together, with a licence and several sources. PinnedFile: one of them, with its size and
SHA-256. Source: a repository of the model hub at a commit, or distributions of the package index. Distribution: a
wheel or source distribution; it is read as an archive and is never installed, built or imported.
"""
