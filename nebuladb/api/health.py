"""The standard health service."""

from __future__ import annotations

from typing import Any, Final

import grpc
from grpc_health.v1 import health

MAX_NAME: Final = 256
"""Characters of a service's name."""


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The library's. Who watches what is no service of ours waits, and is kept with the name, for as long as it likes:
    so that has a bound."""

    async def Watch(self, request: Any, context: Any) -> None:
        """Refuses what can be no service's name."""
        if len(request.service) > MAX_NAME:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a service's name has {MAX_NAME} characters at most")
        await super().Watch(request, context)
