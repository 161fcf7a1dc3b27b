"""``etcdserverpb.Watch``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from nebuladb.api.deliveries import ending
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.watch_stream import WatchStream


class WatchService:
    """Streams of watches, many watches each."""

    def __init__(self, face: Face) -> None:
        self._face = face

    async def Watch(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        face = self._face
        shard = await face.settled(context)
        stream = WatchStream(face, shard, end=ending(context))
        with face.leadership.required(context, shard.group, stream.fail):
            # A client that has said all it wants goes on to be told: the end of its requests ends nothing.
            listening = asyncio.create_task(stream.listen(requests), name="watch requests")
            try:
                async for response in stream.responses():
                    yield response
                    del response  # the next one may be long in coming
            finally:
                listening.cancel()
                stream.close()
