"""The fuzz campaign: mutated payloads to every method of the contract, and broken HTTP/2, against a real server.

`payloads.py` makes requests and mutates them, `http2.py` sends them as they are and reads how each call ended,
`frames.py` breaks the protocol below gRPC, `campaign.py` runs all of it and judges the server.
"""
