"""TLS for servers and channels: contexts with ALPN ``h2``, made anew when the files they come from change.

grpc's own credentials objects are opaque, hence these. Everything may be given as bytes, or as the path of a PEM file;
only files can change. `refresh` looks at them (it reads files: call it in a thread), `context` is what new connections
use. Standing connections keep what they were made with.
"""

from __future__ import annotations

import logging
import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

Pem = bytes | str | os.PathLike[str]
"""PEM: the bytes themselves, or the path of a file."""

LOG: Final = logging.getLogger("nebuladb.rpc")
ALPN_HTTP2: Final = "h2"
ALPN_HTTP1: Final = "http/1.1"
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2, what RFC 9113 (appendix A) doesn't forbid; TLS 1.3 has its own."""
COMMON_NAME: Final = "x509_common_name"
ALTERNATIVE_NAME: Final = "x509_subject_alternative_name"


class _Credentials:
    """A context, and the files that it was made of."""

    def __init__(self, private_key: Pem | None, certificate_chain: Pem | None, roots: Pem | None) -> None:
        if (private_key is None) != (certificate_chain is None):
            raise ValueError("a private key and a certificate chain belong together")
        self._sources = (private_key, certificate_chain, roots)
        self._loaded = self._read()
        self._context = self._make(*self._loaded)

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context

    def refresh(self) -> bool:
        """Read the files again. True if they differed and are in use from now on.

        What can't be used (a key without its certificate yet, half a file) changes nothing; the log says so, and the
        next call tries again.
        """
        try:
            loaded = self._read()
            if loaded == self._loaded:
                return False
            self._context = self._make(*loaded)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            LOG.warning("changed TLS files can't be used yet, the old ones stay: %s", error)
            return False
        self._loaded = loaded
        LOG.info("TLS files were reloaded")
        return True

    def _read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        key, chain, roots = (
            source if source is None or isinstance(source, bytes) else Path(source).read_bytes()
            for source in self._sources
        )
        return key, chain, roots

    def _make(self, key: bytes | None, chain: bytes | None, roots: bytes | None) -> ssl.SSLContext:
        raise NotImplementedError


class ServerCredentials(_Credentials, grpc.ServerCredentials):
    """What `Server.add_secure_port` takes; `ssl_server_credentials` makes them."""

    def __init__(self, private_key: Pem, certificate_chain: Pem, roots: Pem | None, require_client_auth: bool) -> None:
        self._require = require_client_auth
        self._protocols: Sequence[str] = (ALPN_HTTP2,)
        super().__init__(private_key, certificate_chain, roots)

    def listening(self, *, http1: bool) -> ssl.SSLContext:
        """The context to listen with: each handshake goes on under the newest one. `http1`: offer HTTP/1.1 as well."""
        self._protocols = (ALPN_HTTP2, ALPN_HTTP1) if http1 else (ALPN_HTTP2,)
        self._context = self._make(*self._loaded)
        entry = self._make(*self._loaded)

        def newest(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
            # Called for clients that name no server, too. Certificate and client roots are the new context's then.
            connection.context = self._context

        entry.sni_callback = newest
        return entry

    def _make(self, key: bytes | None, chain: bytes | None, roots: bytes | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A resumed session would skip the check of a client's certificate against roots that have changed since.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        _set_up(context, key, chain, self._protocols)
        if roots is not None:
            context.load_verify_locations(cadata=_ascii(roots))
            context.verify_mode = ssl.CERT_REQUIRED if self._require else ssl.CERT_OPTIONAL
        return context


class ChannelCredentials(_Credentials, grpc.ChannelCredentials):
    """What `secure_channel` takes; `ssl_channel_credentials` makes them."""

    def __init__(self, roots: Pem | None, private_key: Pem | None, certificate_chain: Pem | None) -> None:
        super().__init__(private_key, certificate_chain, roots)

    def _make(self, key: bytes | None, chain: bytes | None, roots: bytes | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=None if roots is None else _ascii(roots))
        # Since 3.13 Python refuses authorities without key usage, as many that people make are; etcd and grpc don't.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        _set_up(context, key, chain, (ALPN_HTTP2,))
        return context


def ssl_server_credentials(
    private_key_certificate_chain_pairs: Sequence[tuple[Pem, Pem]],
    root_certificates: Pem | None = None,
    require_client_auth: bool = False,
) -> ServerCredentials:
    """Credentials of a server, with the parameters of ``grpc.ssl_server_credentials``; each may be a file's path.

    With `root_certificates` clients may show a certificate, and must if `require_client_auth` (mutual TLS).

    Raises:
        ValueError: not exactly one pair; client certificates required without roots; PEM that is none.
        OSError: a file can't be read, or doesn't fit the others (`ssl.SSLError`).
    """
    if len(private_key_certificate_chain_pairs) != 1:
        raise ValueError("exactly one pair of private key and certificate chain")
    if require_client_auth and root_certificates is None:
        raise ValueError("client certificates can't be checked without root certificates")
    key, chain = private_key_certificate_chain_pairs[0]
    return ServerCredentials(key, chain, root_certificates, require_client_auth)


def ssl_channel_credentials(
    root_certificates: Pem | None = None, private_key: Pem | None = None, certificate_chain: Pem | None = None
) -> ChannelCredentials:
    """Credentials of a client, with the parameters of ``grpc.ssl_channel_credentials``; each may be a file's path.

    Without `root_certificates` the system's are trusted; with a key and its chain the client shows who it is.

    Raises: as `ssl_server_credentials`.
    """
    return ChannelCredentials(root_certificates, private_key, certificate_chain)


def _ascii(roots: bytes) -> str:
    """Certificates as `ssl` takes them. Bundles say in UTF-8 whose they are. Raises `ValueError` if there is nothing:
    a file that is being written, for which `ssl.create_default_context` would take the system's."""
    if not roots.strip():
        raise ValueError("there is no certificate in the roots")
    return roots.decode("ascii", "backslashreplace")


def _set_up(context: ssl.SSLContext, key: bytes | None, chain: bytes | None, protocols: Sequence[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(list(protocols))
    if key is not None and chain is not None:
        with _file(chain + b"\n" + key) as path:
            context.load_cert_chain(path)


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A path under which `content` can be read: OpenSSL takes a key from nowhere else. In memory where that's had."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


def identity(connection: ssl.SSLObject | None) -> tuple[str | None, Mapping[str, list[bytes]]]:
    """What TLS says of the peer, in grpc's words: the property that identifies it, and all properties.

    Without TLS there are none; without a certificate nothing identifies the peer.
    """
    if connection is None:
        return None, {}
    properties: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    certificate = connection.getpeercert()
    raw = connection.getpeercert(binary_form=True)
    if not certificate or raw is None:
        return None, properties
    subject: Any = certificate.get("subject", ())
    common = [value.encode() for part in subject for name, value in part if name == "commonName"]
    names: Any = certificate.get("subjectAltName", ())
    alternative = [str(value).encode() for _, value in names]
    properties["x509_pem_cert"] = [ssl.DER_cert_to_PEM_cert(raw).encode()]
    if common:
        properties[COMMON_NAME] = common
    if alternative:
        properties[ALTERNATIVE_NAME] = alternative
    key = ALTERNATIVE_NAME if alternative else COMMON_NAME if common else None
    return key, properties
