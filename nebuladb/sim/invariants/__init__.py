"""The oracles: each watches the whole cluster from outside, after every step, and raises `Violation`.

They look only at what changed: a step concerns one node. None of them has a say in what the cluster does.
"""
