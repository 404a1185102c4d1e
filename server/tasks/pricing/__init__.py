"""PricingService: prices of houses with their 90 % prediction intervals.

The engine may import domain, models and inference; service.py and it alone also rpc and the contract.

Read: service.py (contract to domain and back), engine.py (gradient boosted trees on onnxruntime).
"""
