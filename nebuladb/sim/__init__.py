"""The deterministic simulator: clusters of real `Node`s on virtual time, one seed, one process (DESIGN §10).

It is the world around the daemon's own code: network, disks, clocks, crashes, clients and oracles. It defines no state
machine and no log of its own, knows no wall clock, no thread and no global randomness: the same seed gives the same
trace, whatever PYTHONHASHSEED is. Time is whole virtual milliseconds; what falls on the same one happens in an order
drawn from the seed.

`World` runs one seed and raises nothing: a broken invariant, a client that was told something wrong, a cluster that
doesn't recover and any exception of the product's code end as `Result.violation`. ``invariants/`` holds the oracles;
``python -m nebuladb.sim`` runs many seeds. A caller must not run two worlds at once in one process (`knobs`).
"""
