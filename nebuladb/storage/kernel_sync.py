"""`fdatasync` by the kernel's own threads: ``io_submit(2)`` begins it, and a descriptor says that it is over.

A thread of ours could wait for the disk just as well, but it needs the interpreter to begin, which the loop holds as
long as it has anything to do, and once more to say that it is done, when the loop wants it back. That costs a lone
write a tenth of its time, and the nodes a sixth of their CPU time (docs/adr/0005).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from nebuladb.env import probe
from nebuladb.errors import DiskFull, StoreError

if TYPE_CHECKING:
    from caio.linux_aio import Context, Operation

FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


class KernelSync:
    """One sync at a time: `begin`, then `finished` whenever `fileno` can be read, until it returns True."""

    def __init__(self, context: Context, operation: type[Operation]) -> None:
        self._context = context
        self._operation = operation
        self._result: int | None = None
        """Of the sync that is over and that nobody was told of."""

    @classmethod
    def open(cls) -> KernelSync | None:
        """None where the kernel doesn't do it: it isn't Linux 4.18 or later, or a sandbox forbids the calls."""
        try:
            from caio.linux_aio import Context, Operation  # elsewhere there is no such module

            return cls(Context(max_requests=1), Operation)
        except (ImportError, SystemError):
            return None

    @property
    def fileno(self) -> int:
        """A descriptor that can be read when a sync is over."""
        return self._context.fileno

    def begin(self, file: int) -> bool:
        """Begin to make durable what has been written to `file`. Returns at once; False: the kernel doesn't take it,
        and nothing has begun."""
        operation = self._operation.fdsync(file)
        operation.set_callback(self._completed)
        self._result = None
        try:
            return self._context.submit(operation) == 1
        except (OverflowError, ValueError, SystemError):
            probe("kernel took no sync")
            return False

    def finished(self) -> bool:
        """Whether the sync is over and what it was about is durable. Raises `StoreError` or `DiskFull` if it failed:
        then what has reached the disk is unknown, also after another one (S33)."""
        try:
            self._context.poll()
        except BlockingIOError:
            return False
        self._context.process_events()
        result, self._result = self._result, None
        if not result:
            return result is not None
        error = (1 << 64) - result  # negative, as the kernel says it, in 64 bits
        text = f"IO error: While fdatasync of the log: {os.strerror(error)}"
        raise DiskFull(text) if error in FULL else StoreError(text)

    def _completed(self, result: int) -> None:
        self._result = result
