"""What clients do, each kind with what it may see: an `Actor` asks, and a `Fact` that all of a group share judges.

A history that needs a search goes to ``linearizability``; the others need none, because their values are written once.
None of these knows more than clients of a real cluster could, but for the time, which is the true one.
"""
