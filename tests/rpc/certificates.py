"""Certificates for a test, made by the openssl program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

OPENSSL: Final = shutil.which("openssl")
needs_openssl: Final = pytest.mark.skipif(OPENSSL is None, reason="no openssl program here to make certificates")


def run(*arguments: str) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *arguments], check=True, capture_output=True)


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str = "ca", *, strict: bool = True) -> None:
        """Not `strict`: as they are made at home, and RFC 5280 doesn't quite allow: without key usage."""
        self.folder = folder
        self.name = name
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        run(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(self._key), "-out", str(self.certificate)),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
            *(("-addext", "keyUsage=critical,keyCertSign") if strict else ()),
        )

    def issue(self, common: str, *, into: str | None = None) -> tuple[Path, Path]:
        """(key, certificate) for a name, good for 127.0.0.1 and localhost; in files named `into`, replaced whole."""
        base = self.folder / f"{self.name}-{common}"
        request, extensions = base.with_suffix(".csr"), base.with_suffix(".ext")
        key, certificate = base.with_suffix(".key"), base.with_suffix(".crt")
        extensions.write_text(f"subjectAltName=DNS:localhost,DNS:{common},IP:127.0.0.1\n")
        run(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={common}", "-keyout", str(key), "-out", str(request)),
        )
        run(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate)),
        )
        if into is None:
            return key, certificate
        return key.replace(self.folder / f"{into}.key"), certificate.replace(self.folder / f"{into}.crt")
