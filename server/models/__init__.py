"""Models: artefacts on disk or in a registry, and the manager that loads, replaces and evicts them.

May import `domain`. Read first: `handle.py` (what servicers keep), `spec.py`, `manager.py`.

Artefact      a verified folder: one version of one model, with its manifest
ModelSpec     which model there is and how it is loaded
ModelManager  loads, replaces and evicts models, and follows what is published
Handle        a reference to a loaded model, for the length of a call (`use`) or for good (`get`)

Behind the manager: `loading.py` brings engines into memory within the MemoryLimit, `swap.py` puts them into handles
(verify, load aside, check, swap), and `golden.py` checks an engine's outputs before it serves. `derived.py` makes what
is made of models (collections, answers). `store.py` has versions and aliases on disk, `registry.py` copies those of an
MLflow server there. `following.py` notices what is published or repaired, `mirroring.py` asks the registry.
"""
