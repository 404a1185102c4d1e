"""ModelService: administration of the models. `service.py` converts between the contract and the ModelManager.

May import domain, models, and rpc's helpers.
"""
