"""The container engine: the one that runs here, or one of our own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from tools.compose_test import keeper
from tools.compose_test.shell import Failure, Unavailable, attempt, run, wait

START_SECONDS: Final = 60.0
ASK_SECONDS: Final = 20.0
PACKAGES: Final = "docker.io docker-cli docker-compose docker-buildx debootstrap"
"""What Debian calls all that this needs."""
PARTS: Final = ("dockerd", "containerd", "runc", "docker-proxy", "setpriv", "unshare", "debootstrap")
SOCKET: Final = "docker.sock"
MAX_SOCKET: Final = 100
"""Characters; the kernel takes 107 for a Unix socket's path."""
LOG_TAIL: Final = 2000


class Engine:
    """How to speak to an engine. `own` is whether we started it: then there is no network but the containers' own."""

    def __init__(self, host: str | None, *, own: bool) -> None:
        self.own = own
        # Our caller's NEBULA_* are not for the containers.
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("NEBULA")}
        if host is not None:
            self.environ["DOCKER_HOST"] = host
            self.environ.pop("DOCKER_CONTEXT", None)

    def docker(self, *words: str | Path, seconds: float = 120.0, said: bytes = b"") -> str:
        """What `docker WORDS` prints. Raises `Failure`."""
        return run(["docker", *words], environ=self.environ, seconds=seconds, said=said)

    def attempt(self, *words: str | Path, seconds: float = 120.0) -> subprocess.CompletedProcess[bytes]:
        """`docker WORDS`, whatever it exits with."""
        return attempt(["docker", *words], environ=self.environ, seconds=seconds)

    def answers(self) -> bool:
        """Whether there is one."""
        with contextlib.suppress(Failure):
            return self.attempt("version", "--format", "{{.Server.Version}}", seconds=ASK_SECONDS).returncode == 0
        return False

    def version(self) -> str:
        """Of engine and compose, for the record."""
        server = json.loads(self.docker("version", "--format", "{{json .Server}}"))["Version"]
        return f"Docker {server}, compose {self.docker('compose', 'version', '--short').strip()}"


@contextmanager
def engine(scratch: Path, choice: str, name: str, say: Callable[[str], None]) -> Iterator[Engine]:
    """An engine while this lasts. `choice` is auto, running or own. Should we die meanwhile, what is called `name...`
    there is removed. Raises `Unavailable`."""
    found = Engine(None, own=False)
    if choice != "own" and shutil.which("docker") and found.answers():
        _demand_plugins(found)
        with _kept(scratch, name, found.environ):
            yield found
        return
    if choice == "running":
        raise Unavailable("no engine answers")
    missing = _missing()
    if missing:
        raise Unavailable(
            f"no engine answers, and to start one {', '.join(missing)} is missing: apt-get install {PACKAGES}"
        )
    if os.geteuid() != 0:
        raise Unavailable("no engine answers, and only root can start one")
    with _own(scratch, name, say) as mine:
        _demand_plugins(mine)
        yield mine


def _missing() -> list[str]:
    return [part for part in ("docker", *PARTS) if shutil.which(part) is None]


def _demand_plugins(found: Engine) -> None:
    for plugin in ("compose", "buildx"):
        if found.attempt(plugin, "version").returncode != 0:
            raise Unavailable(f"docker {plugin} is missing: apt-get install {PACKAGES}")


def command(directory: Path) -> Sequence[str]:
    """How an engine in `directory` is started.

    It leaves the machine's network as it is: no rule of iptables, no forwarding, no default bridge. (With them dockerd
    would set the policy of the whole machine's FORWARD chain to DROP, and leave it so.) Published ports go through
    docker-proxy. Should its keeper be killed, the kernel tells it to end.
    """
    return [
        *("setpriv", "--pdeathsig", "TERM", "dockerd", "--host", f"unix://{directory / SOCKET}"),
        *("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")),
        *("--pidfile", str(directory / "pid"), "--config-file", str(directory / "daemon.json")),
        *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
    ]


@contextmanager
def _kept(
    scratch: Path, name: str, environ: Mapping[str, str], command: Sequence[str] = (), log: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Our `keeper` while this lasts; it runs `command` and has ended with it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", keeper.__name__, str(scratch), name, *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        cwd=Path(__file__).parents[2],  # where `tools` is
        env=environ,
        start_new_session=True,  # Ctrl-C is for us
    )
    said = b""
    try:
        yield process
        said = keeper.GOODBYE
    finally:  # after a second Ctrl-C, say, it removes what we have not
        with contextlib.suppress(BrokenPipeError):  # it ended before
            process.communicate(said)


@contextmanager
def _own(scratch: Path, name: str, say: Callable[[str], None]) -> Iterator[Engine]:
    directory = scratch / keeper.FOLDER
    if len(str(directory / SOCKET)) > MAX_SOCKET:
        raise Unavailable(f"{directory} is too long a path for a socket: set TMPDIR to a shorter one")
    directory.mkdir()
    (directory / "daemon.json").write_text("{}")
    mine = Engine(f"unix://{directory / SOCKET}", own=True)
    log = scratch / "engine.log"
    try:
        with log.open("wb") as output, _kept(scratch, name, mine.environ, command(directory), output) as process:

            def up() -> bool:
                if process.poll() is not None:
                    raise Unavailable(f"dockerd can't run here; it ended with {process.returncode} and said:\n{tail()}")
                return mine.answers()

            def tail() -> str:
                return log.read_text(errors="replace")[-LOG_TAIL:]

            try:
                wait(up, "dockerd answers", START_SECONDS)
            except Failure as error:
                raise Unavailable(f"{error}\n{tail()}") from error
            say("An engine of our own runs.")
            yield mine
    finally:
        log.unlink(missing_ok=True)
