"""What clients do, and what may be seen: by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jepsen.workloads.append import Appends
from jepsen.workloads.bank import Transfers
from jepsen.workloads.base import Workload
from jepsen.workloads.lease import Locks
from jepsen.workloads.register import Registers
from jepsen.workloads.sessions import Repeats
from jepsen.workloads.set import Additions
from jepsen.workloads.unique import Numbers
from jepsen.workloads.watch import Watches

WORKLOADS: Final[Mapping[str, type[Workload]]] = {
    "register": Registers,
    "append": Appends,
    "bank": Transfers,
    "unique": Numbers,
    "set": Additions,
    "watch": Watches,
    "lease": Locks,
    "sessions": Repeats,
}
