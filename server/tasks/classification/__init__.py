"""ClassificationService: texts to labels, by any of the models that classify.

The engines are in server/inference (text.py, onnx_text.py, torch_text.py), because analysis uses them, too. service.py
may import domain, models' handles, rpc and the contract.
"""
