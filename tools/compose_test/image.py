"""Building the image: the base that the Dockerfile names, pip's configuration as a secret, and broken variants."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tools.compose_test.engine import Engine
from tools.compose_test.shell import Failure, run

ROOT: Final = Path(__file__).resolve().parent.parent.parent
DOCKERFILE: Final = ROOT / "deploy" / "docker" / "Dockerfile"
BASE: Final = re.compile(r"^ARG PYTHON=(python:(\d+\.\d+)-slim-([a-z]+))$", re.MULTILINE)
BUILD_SECONDS: Final = 600.0
BOOTSTRAP_SECONDS: Final = 600.0
CA: Final = "/run/secrets/ca.pem"
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
PASSED: Final = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
"""Of pip's configuration: whence packages come. Paths of this machine mean nothing in a build."""
ALONE: Final = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount-proc", "--pid", "--fork", "--kill-child")
"""Before a command: all that it starts ends with us, and all that it mounts with that."""
SLIMMED: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")
"""The official slim image lacks these too."""

BROKEN: Final = {
    # Its node never serves: the `up` must fail.
    "program": "RUN rm -r /opt/nebula/lib/python3*/site-packages/rocksdict",
    # It serves well, and has lost everything when the container starts again.
    "volume": """RUN sed -i 's|^data-dir.*|data-dir = "/dev/shm/nebula"|' /etc/nebula/nebulad.toml""",
    # It runs, is ready, and says it isn't.
    "healthcheck": "RUN sed -i 's|GET /readyz|GET /ready|' /opt/nebula/bin/nebula-healthcheck",
    # It never drains.
    "drain": "STOPSIGNAL SIGKILL",
    # It works, as root.
    "root": "RUN chown root:root /var/lib/nebula",
}
"""Name → what is added to the image, as root. The test must fail with each."""


def base() -> tuple[str, str, str]:
    """(tag, Python's version, Debian's suite) that the Dockerfile builds on."""
    found = BASE.search(DOCKERFILE.read_text())
    if found is None:
        raise Failure(f"{DOCKERFILE} names no base image like python:3.13-slim-trixie")
    return found[1], found[2], found[3]


def import_base(engine: Engine, scratch: Path, kept: Path | None) -> str:
    """Make the base image out of Debian's packages; its tag. `kept` is a tar file to take, or to leave there."""
    tag, version, suite = base()
    tar = kept or scratch / "base.tar"
    if not tar.exists():
        root = scratch / "base"
        try:
            include = f"--include=python{version},python3-venv"
            run(
                [*ALONE, "debootstrap", "--variant=minbase", include, suite, str(root), *_mirror(suite)],
                seconds=BOOTSTRAP_SECONDS,
            )
            for folder in SLIMMED:
                for entry in (root / folder).iterdir():
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            part = tar.with_suffix(".part")
            run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(part), "."])
            part.replace(tar)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    engine.docker("import", "--change", 'CMD ["python3"]', tar, tag)
    # Container runs need no network for this; the tag would lie if Debian's Python were another one.
    said = engine.docker("run", "--rm", "--network=none", tag, "python3", "--version")
    if not said.startswith(f"Python {version}."):
        raise Failure(f"Debian {suite} has {said.strip()}, and the Dockerfile wants {version}")
    return tag


def _mirror(suite: str) -> list[str]:
    """Where this machine gets its own packages from, if it is of the same suite; debootstrap knows a place, too."""
    try:
        targets = run(["apt-get", "indextargets", "--format", "$(RELEASE)|$(REPO_URI)", "Created-By: Packages"])
    except Failure:
        return []
    found = [line.split("|") for line in targets.splitlines()]
    return [where for release, where in found if release == suite and where.startswith("http")][:1]


def _pip_configuration() -> tuple[str, Path | None]:
    """(A pip.conf for the build, the CA file that it names as `CA`), from what pip uses here."""
    lines, authority = ["[global]"], None
    for line in run([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        name, _, text = line.partition("=")
        key, value = name.rpartition(".")[2], str(ast.literal_eval(text))
        if key in PASSED:
            lines.append(f"{key.removeprefix('default-')} = {value}")
        elif key == "cert":
            authority = Path(value)
    if authority is not None:
        lines.append(f"cert = {CA}")
    return "\n".join([*lines, ""]), authority


def build(engine: Engine, scratch: Path, tag: str) -> None:
    """Build the image as `tag`. Raises `Failure` with the build's last words."""
    text, authority = _pip_configuration()
    configuration = scratch / "pip.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(text)
    try:
        given = [f"--secret=id=pip.conf,src={configuration}"]
        if authority is not None:
            given.append(f"--secret=id=ca.pem,src={authority}")
        if engine.own:
            given.append("--network=host")  # it has none of its own
        given += [f"--build-arg={name}" for name in PROXIES if os.environ.get(name)]
        engine.docker(
            "build", "--progress=plain", "--file", DOCKERFILE, "--tag", tag, *given, ROOT, seconds=BUILD_SECONDS
        )
    finally:
        configuration.unlink()


def break_image(engine: Engine, tag: str, how: str, scratch: Path) -> None:
    """Replace the image `tag` by one that is broken in the way `how` of `BROKEN`."""
    user = "0:0" if how == "root" else "7379:7379"
    context = scratch / f"broken-{how}"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {tag}\nUSER 0:0\n{BROKEN[how]}\nUSER {user}\n")
    engine.docker("build", "--network=none", "--tag", tag, context, seconds=BUILD_SECONDS)


def size(engine: Engine, tag: str) -> int:
    """Of an image, unpacked, in bytes."""
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", tag))
