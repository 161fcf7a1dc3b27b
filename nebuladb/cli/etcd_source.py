"""A live etcd, read: all keys at one revision, and leases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from nebuladb.addresses import channel_target, split_address
from nebuladb.errors import Compacted, ConfigurationError, Unavailable
from nebuladb.pb.etcd import auth_pb2, kv_pb2, lease_pb2
from nebuladb.pb.etcd.mvcc_pb2 import KeyValue
from nebuladb.rpc import insecure_channel, secure_channel, ssl_channel_credentials
from nebuladb.rpc.tls import ChannelCredentials

ALL: Final = b"\0"
"""As a key: the first there may be; as a range's end: none."""
PAGE_BYTES: Final = 4 << 20
"""What a page should have; etcd bounds it by a number of keys only."""
FIRST_LIMIT: Final = 16
MAX_LIMIT: Final = 4096
"""Keys of a page."""
MAX_MESSAGE: Final = 128 << 20
"""Of a page that turns out larger: so much of a first page's large values, or of some after many small ones."""

OLD_REVISION: Final = "etcdserver: revision of auth store is old"

Answer = TypeVar("Answer", bound=Message)


class Lease(NamedTuple):
    """A lease, with the seconds that it has left, and those that it was granted."""

    id: int
    ttl: int
    granted: int


class Security(NamedTuple):
    """How it is spoken to: files of certificates in PEM, and NAME:PASSWORD; empty: not at all."""

    cacert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""

    def credentials(self) -> ChannelCredentials:
        """Raises `ConfigurationError` for what can't be read, or isn't PEM."""
        root, chain, key = (_read(name) for name in (self.cacert, self.cert, self.key))
        try:
            ssl_channel_credentials(root)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigurationError(f"{self.cacert} is no certificate in PEM: {error}") from error
        try:
            return ssl_channel_credentials(root, key, chain)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.cert} and {self.key} are no certificate and its key in PEM: {error}"
            ) from error


def _read(name: str) -> bytes | None:
    """A file's content, if there is a name."""
    try:
        content = Path(name).read_bytes() if name else None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{name}: {getattr(error, 'strerror', error)}") from error
    if content == b"":
        raise ConfigurationError(f"{name} is empty")
    return content


class EtcdSource:
    """An etcd at HOST:PORT, to be used with ``async with``. Errors of its are `Unavailable`, or `Compacted`."""

    def __init__(self, address: str, security: Security, timeout: float) -> None:
        """`timeout`: seconds a request. Raises `ConfigurationError` for an address that is none, and for files that
        can't be used."""
        scheme, _, rest = address.rpartition("://")
        self.address = rest.rstrip("/")
        if scheme not in ("", "http", "https"):
            raise ConfigurationError(f"{address!r} is neither HOST:PORT nor http:// nor https:// with that")
        split_address(self.address)
        self._timeout = timeout
        self._user = security.user
        self._metadata: tuple[tuple[str, str], ...] = ()
        self.revision = 0
        """That of the first page, and so of all."""
        self.count = 0
        """Keys at that revision."""
        self.cluster = 0
        """The id of its cluster."""
        secure = scheme == "https" or security.cacert or security.cert
        self._credentials = security.credentials() if secure else None

    async def __aenter__(self) -> Self:
        options = (("grpc.max_receive_message_length", MAX_MESSAGE),)
        if self._credentials is not None:
            self._channel = secure_channel(channel_target(self.address), self._credentials, options)
        else:
            self._channel = insecure_channel(channel_target(self.address), options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def open(self) -> None:
        """Log in, if there is a user, and fix the revision. Raises as the class says."""
        if self._user:
            await self._login()
        request = kv_pb2.RangeRequest(key=ALL, range_end=ALL, count_only=True)
        found = await self._call("KV/Range", request, kv_pb2.RangeResponse)
        self.revision, self.count, self.cluster = found.header.revision, found.count, found.header.cluster_id

    async def leases(self) -> list[Lease]:
        """Those that haven't ended."""
        request = lease_pb2.LeaseLeasesRequest()
        answer = await self._call("Lease/LeaseLeases", request, lease_pb2.LeaseLeasesResponse)
        found = []
        for lease in answer.leases:
            asked = lease_pb2.LeaseTimeToLiveRequest(ID=lease.ID)
            left = await self._call("Lease/LeaseTimeToLive", asked, lease_pb2.LeaseTimeToLiveResponse)
            if left.TTL >= 0:  # of the last second there are 0 left
                found.append(Lease(lease.ID, left.TTL, left.grantedTTL))
        return found

    async def pages(self) -> AsyncIterator[Sequence[KeyValue]]:
        """All keys, in order, as they were at `revision`."""
        start, limit = ALL, FIRST_LIMIT
        while True:
            request = kv_pb2.RangeRequest(key=start, range_end=ALL, revision=self.revision, limit=limit)
            try:
                page = await self._call("KV/Range", request, kv_pb2.RangeResponse)
            except TooLarge:
                if limit == 1:
                    raise
                limit = max(limit // 8, 1)
                continue
            if page.kvs:
                yield page.kvs
                start = page.kvs[-1].key + b"\0"
                size = max(page.ByteSize() // len(page.kvs), 1)
                limit = max(1, min(PAGE_BYTES // size, MAX_LIMIT, limit * 8))
            if not page.more:
                return

    async def _login(self) -> None:
        name, _, password = self._user.partition(":")
        login = auth_pb2.AuthenticateRequest(name=name, password=password)
        self._metadata = ()
        answer = await self._call("Auth/Authenticate", login, auth_pb2.AuthenticateResponse)
        self._metadata = (("token", answer.token),)

    async def _call(self, method: str, request: Message, kind: type[Answer]) -> Answer:
        invoke: Any = self._channel.unary_unary(f"/etcdserverpb.{method}", _encode, kind.FromString)
        answer: Answer
        try:
            try:
                answer = await invoke(request, timeout=self._timeout, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                if not (self._metadata and _outworn(error)):
                    raise
                await self._login()
                answer = await invoke(request, timeout=self._timeout, metadata=self._metadata)
            return answer
        except grpc.aio.AioRpcError as error:
            text = f"etcd at {self.address}: {error.details() or error.code().name}"
            if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                raise Compacted(f"{text}: revision {self.revision} went while it was read") from error
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise TooLarge(text) from error
            raise Unavailable(text) from error


def _outworn(error: grpc.aio.AioRpcError) -> bool:
    """Whether another token would do: one of the kind `jwt` lasts for five minutes, and until users or roles change."""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or error.details() == OLD_REVISION


class TooLarge(Unavailable):
    """A page is larger than a message may be."""


def _encode(request: Message) -> bytes:
    return request.SerializeToString()
