"""Chat: conversations answered by providers' language models or by the embedded one.

service.py converts requests and calls a Router. The Router asks its upstreams in order and accounts the call. An
Upstream asks one model over the OpenAI protocol. The embedded model is a llama.cpp process with an ordinary Upstream.

The engines may import `domain`, `models`, `inference` and `usage`; service.py also `rpc`, the contract and gRPC.

Read first: `service.py`, `router.py`, `openai_upstream.py`.

Words: an upstream is one model of a provider; a route is a name for upstreams in an order, and a Router asks them; a
circuit breaker stops the calls to a provider that fails repeatedly.
"""
