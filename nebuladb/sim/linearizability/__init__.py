"""Is a history of concurrent operations linearizable? (DESIGN §10; Wing and Gong 1993, Lowe 2017.)

`check` takes operations as Python values (`Operation`) and a sequential `Model` of the object, and returns a `Report`:
a verdict, for each key an order that explains its operations, or the shortest prefix of the history that has none.
Models: `register` (read, write, compare-and-set) and `key_value` (get, put, append); a workload with another object
writes its own. ``python -m nebuladb.sim.linearizability FILE…`` checks recorded histories (`histories`), and draws
them (`timeline`).

What the caller owes it: times of one clock, or none that is wrong by more than the operations are apart; operations
that certainly did not happen left out; those whose outcome is not known marked so (`returned=None`), for they may take
effect at any later time or never.

What it promises: no wrong verdict. The problem is NP-complete, so that a search has a bound on its work
(`search.MAX_STEPS`), beyond which the verdict is UNDECIDED. Few processes a key, short histories a key and, above all,
values that are written only once keep it far from that: thousands of operations take a second.

Deterministic; no clock, no randomness, no threads.
"""
