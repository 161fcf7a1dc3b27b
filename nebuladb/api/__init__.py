"""The services of ``nebula.v1``: translate a call, check it, delegate it to the node, translate the answer.

Handlers work on the bytes of a request, because those are what is proposed and replicated. A refusal is a
`nebuladb.errors.NebulaError`, which becomes a gRPC status with an ``ErrorDetail`` in one place (``status``). Nothing
here waits for a disk or knows how a write gets its majority.
"""
