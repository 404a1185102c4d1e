"""One recipe an artefact. `build` reads its inputs, fills the workspace's folder, measures, and returns the outcome.

May import `training.datasets`, `training.graphs`, `server.models`, `server.inference`, `server.domain`,
`server.vectorstore` and the splitter of `server.tasks.rag`; never rpc, services or app. Recipes know each other only
where one needs the other's artefact.

Read first: language.py (the smallest), house_prices.py (trained from a table), sentiment.py (a fine-tuned BERT).

Workspace: what a build gets. Outcome: the manifest's schema and metrics. Both are defined in `training.recipe`.
"""
