"""``etcdserverpb.Auth``, as etcd answers it with authentication disabled and without users and roles.

Both are not kept yet: who adds one is told so, since to answer OK and forget it would be a lie. What only reads, or
names one, answers as an etcd does that has none.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

from nebuladb.api.backend import M
from nebuladb.api.etcd.errors import EtcdError
from nebuladb.api.etcd.face import Face
from nebuladb.api.etcd.requests import received
from nebuladb.pb.etcd import auth_pb2 as pb
from nebuladb.pb.etcd.header_pb2 import ResponseHeader

AUTH_REVISION: Final = 1
"""Of an etcd in which nobody has touched users and roles."""
_MISSING: Final = "FAILED_PRECONDITION"


class AuthService:
    """Each method takes a request's bytes and gives a response's."""

    def __init__(self, face: Face) -> None:
        self._face = face

    async def AuthEnable(self, raw: bytes, context: Any) -> bytes:
        received(pb.AuthEnableRequest, raw)
        await self._header(context)
        raise EtcdError(_MISSING, "etcdserver: root user does not exist")

    async def AuthDisable(self, raw: bytes, context: Any) -> bytes:
        received(pb.AuthDisableRequest, raw)
        return pb.AuthDisableResponse(header=await self._header(context)).SerializeToString()

    async def AuthStatus(self, raw: bytes, context: Any) -> bytes:
        received(pb.AuthStatusRequest, raw)
        header = await self._header(context)
        return pb.AuthStatusResponse(header=header, authRevision=AUTH_REVISION).SerializeToString()

    async def Authenticate(self, raw: bytes, context: Any) -> bytes:
        received(pb.AuthenticateRequest, raw)
        await self._header(context)
        raise EtcdError(_MISSING, "etcdserver: authentication is not enabled")

    # --- users

    async def UserAdd(self, raw: bytes, context: Any) -> bytes:
        request = await self._request(pb.AuthUserAddRequest, raw, context)
        if not request.name:
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: user name is empty")
        _not_kept("users")

    async def UserGet(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthUserGetRequest, raw, context)
        _no_user()

    async def UserList(self, raw: bytes, context: Any) -> bytes:
        received(pb.AuthUserListRequest, raw)
        return pb.AuthUserListResponse(header=await self._header(context)).SerializeToString()

    async def UserDelete(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthUserDeleteRequest, raw, context)
        _no_user()

    async def UserChangePassword(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthUserChangePasswordRequest, raw, context)
        _no_user()

    async def UserGrantRole(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthUserGrantRoleRequest, raw, context)
        _no_user()

    async def UserRevokeRole(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthUserRevokeRoleRequest, raw, context)
        _no_user()

    # --- roles

    async def RoleAdd(self, raw: bytes, context: Any) -> bytes:
        request = await self._request(pb.AuthRoleAddRequest, raw, context)
        if not request.name:
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: role name is empty")
        _not_kept("roles")

    async def RoleGet(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthRoleGetRequest, raw, context)
        _no_role()

    async def RoleList(self, raw: bytes, context: Any) -> bytes:
        received(pb.AuthRoleListRequest, raw)
        return pb.AuthRoleListResponse(header=await self._header(context)).SerializeToString()

    async def RoleDelete(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthRoleDeleteRequest, raw, context)
        _no_role()

    async def RoleGrantPermission(self, raw: bytes, context: Any) -> bytes:
        request = await self._request(pb.AuthRoleGrantPermissionRequest, raw, context)
        if not request.HasField("perm"):
            raise EtcdError("INVALID_ARGUMENT", "etcdserver: permission not given")
        _no_role()

    async def RoleRevokePermission(self, raw: bytes, context: Any) -> bytes:
        await self._request(pb.AuthRoleRevokePermissionRequest, raw, context)
        _no_role()

    # ---

    async def _request(self, kind: type[M], raw: bytes, context: Any) -> M:
        """The message, once this is known to be of now: etcd takes these through its log."""
        request = received(kind, raw)
        await self._header(context)
        return request

    async def _header(self, context: Any) -> ResponseHeader:
        shard = self._face.shard(context)
        store = await self._face.backend.current(shard, self._face.timeout(context))
        return self._face.header(shard.group, store.revision)


def _no_user() -> NoReturn:
    raise EtcdError(_MISSING, "etcdserver: user name not found")


def _no_role() -> NoReturn:
    raise EtcdError(_MISSING, "etcdserver: role name not found")


def _not_kept(what: str) -> NoReturn:
    raise EtcdError("UNIMPLEMENTED", f"etcdserver: this server keeps no {what} yet: authentication can't be enabled")
