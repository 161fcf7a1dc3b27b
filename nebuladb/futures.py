"""A future whose waiter can go on in the call that sets it, where asyncio's own wakes it a turn of the loop later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class PromptFuture(asyncio.Future[T]):
    """Whoever waits for it may set `resume`, which is called as soon as it is done, by whatever sets it.

    In all else it is a future: who awaits it in a task needs to know nothing of this. A cancellation calls nothing.
    """

    resume: Callable[[], None] | None = None

    def set_result(self, result: T) -> None:
        super().set_result(result)
        if self.resume is not None:
            self.resume()

    def set_exception(self, exception: type[Any] | BaseException) -> None:
        super().set_exception(exception)
        if self.resume is not None:
            self.resume()
