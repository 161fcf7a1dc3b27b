"""NebulaDB's etcd face against etcd: the same bytes from the same light client, in one run.

``python -m bench.face`` is the comparison, ``python -m bench.face.echo`` shows what the client itself costs, and
``python -m bench.face.layers`` where a node's time goes.
"""
