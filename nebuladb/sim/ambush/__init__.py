"""Harm at the moments that safety hangs on: somebody lies in wait for them.

`Ambush` draws when and which; `Scene` is what it shares with kinds that are a class of their own.
"""

from nebuladb.sim.ambush.ambush import Ambush

__all__ = ["Ambush"]
