"""What surrounds every gRPC call: identity, admission, validation, tenant limits, and errors as statuses.

May import `domain`, `tenancy`, the contract and grpc. Read first: `pipeline.py`, `service_spec.py`, `status.py`.

Words: the pipeline is the two wrappers (unary and streaming) around each handler. Receiving bounds the requests that
have not arrived yet; OpenCalls ends calls on the wire at their deadline; Anonymous serves health and reflection, which
require no authentication. Admission refuses calls that the server cannot serve in time. A Touch is a resource that a
method uses or shows, with the check of the caller's right. A Method has the numbers of one RPC method. A ServiceSpec is
one service's row in `app.py`.
"""
