"""`fdatasync` by the kernel's own threads: ``io_submit(2)`` begins it, and a descriptor says that it is over.

A thread of ours could wait for the disk just as well, but it needs the interpreter to begin, which the loop holds as
long as it has anything to do, and once more to say that it is done, when the loop wants it back. That costs a lone
write a tenth of its time, and the nodes a sixth of their CPU time (docs/adr/0005).
"""

from __future__ import annotations

import os
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any

from nebuladb.env import probe
from nebuladb.errors import DiskFull, StoreError
from nebuladb.storage.files import FULL

if TYPE_CHECKING:
    from caio.linux_aio import Context, Operation


@cache
def _module() -> Any:
    """``caio.linux_aio``, by itself: the package also tries io_uring when it is imported, which some sandboxes punish
    with the process's end. Raises `ImportError` where there is none, or where the kernel refuses its call."""
    package = find_spec("caio")
    spec = PathFinder.find_spec("linux_aio", package.submodule_search_locations) if package is not None else None
    if spec is None or spec.loader is None:
        raise ImportError("there is no caio.linux_aio on this system")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KernelSync:
    """One sync at a time: `begin`, then `finished` whenever `fileno` can be read, until it returns True."""

    def __init__(self) -> None:
        """Raises `ImportError` or `SystemError` where the kernel doesn't do it."""
        self._operation: type[Operation] = _module().Operation
        self._context: Context = _module().Context(max_requests=1)
        self._context.process_events()  # a sandbox may forbid this call alone
        os.set_inheritable(self._context.fileno, False)  # noqa: FBT003
        self._results: list[int] = []
        """Of the sync that is over and that nobody was told of; one at most."""

    @classmethod
    def open(cls) -> KernelSync | None:
        """None where the kernel doesn't do it: it isn't Linux 4.18 or later, or a sandbox forbids the calls."""
        try:
            return cls()
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
        operation.set_callback(self._results.append)
        self._results.clear()
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
        self._context.process_events(1)
        if not self._results:
            return False
        result = self._results.pop()
        if not result:
            return True
        error = (1 << 64) - result  # negative, as the kernel says it, in 64 bits
        text = f"IO error: While fdatasync of the log: {os.strerror(error)}"
        raise DiskFull(text) if error in FULL else StoreError(text)
