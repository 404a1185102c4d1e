"""Makes every artefact that Quintet serves, with `python -m training`: fetch, train, evaluate, export, publish.

May import `server.domain`, `server.models`, `server.inference`, `server.vectorstore`, engines of `server.tasks` for
golden inputs and passages, and heavy libraries; never rpc, services or app.

Folders: recipes/ (one module an artefact), datasets/ (readers of training data), graphs/ (models as ONNX), fetch/
(where files come from). Beside them: the catalogue of recipes, the plan, the run, and what they report.

Read first: catalogue.py (what there is), plan.py (what must be done), run.py (doing it).

Recipe: the description of an artefact before it is built; its digest decides whether it must be built. Plan: steps with
their states. Locations: the cache and the folders that the server reads. Golden inputs: see `server.models.golden`.
"""
