"""The image without an engine: what the Dockerfile says, what it copies, and the health check as a process."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nebuladb import __version__
from nebuladb.errors import ConfigurationError
from nebuladb.server import config
from tools.compose_test.image import BROKEN, DOCKERFILE, ROOT, base

TEXT = DOCKERFILE.read_text()
FINAL = TEXT.rpartition("\nFROM ")[2]
HEALTHCHECK = ROOT / "deploy" / "docker" / "healthcheck.py"
DEFAULTS = ROOT / "deploy" / "docker" / "nebulad.toml"


def test_both_stages_stand_on_the_base_that_the_test_imports() -> None:
    tag, version, suite = base()
    assert re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE) == ["${PYTHON}", "${PYTHON}"]
    assert tag == f"python:{version}-slim-{suite}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minimum = project["requires-python"].removeprefix(">=").split(".")
    assert [int(part) for part in version.split(".")] >= [int(part) for part in minimum]


def test_what_is_installed_comes_from_the_lock_by_hash() -> None:
    installs = re.findall(r"pip install ([^&\n]*)", TEXT)
    assert len(installs) == 2
    assert "--require-hashes --no-deps" in installs[0]
    assert "-r requirements.lock" in installs[0]
    assert "--no-index --no-deps" in installs[1]


def test_it_runs_as_a_number_with_one_volume_and_drains() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", FINAL, re.MULTILINE)
    assert user is not None
    assert user[1] != "0"
    assert f"-o {user[1]} -g {user[2]} /var/lib/nebula" in FINAL
    assert re.findall(r"^VOLUME (\S+)", TEXT, re.MULTILINE) == ["/var/lib/nebula"]
    assert "\nSTOPSIGNAL SIGTERM\n" in FINAL
    assert 'CMD ["nebula-healthcheck"]' in FINAL


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignore
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", TEXT, re.MULTILINE):
        copied.update(line.split()[:-1])
    assert allowed == copied
    assert all((ROOT / path).exists() for path in copied)


def test_whoever_s_umask_the_checkout_has_the_node_can_read_what_is_copied() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+)$", FINAL, re.MULTILINE)
    assert len(copies) == 1
    assert all(re.match(r"--chmod=0\d\d[45] ", copy) for copy in copies)


def test_its_configuration_is_a_node_s_and_the_environment_wins_over_it() -> None:
    given = {"NEBULA_ADVERTISE_CLIENT_ADDR": "n1:7379", "NEBULA_ADVERTISE_PEER_ADDR": "n1:7380"}
    loaded = config.load({}, given, DEFAULTS)
    assert loaded.data_dir == Path("/var/lib/nebula")
    assert (loaded.client_addr, loaded.admin_addr) == ("0.0.0.0:7379", "0.0.0.0:7381")
    assert config.load({}, {**given, "NEBULA_DATA_DIR": "/else"}, DEFAULTS).data_dir == Path("/else")
    exposed = re.search(r"^EXPOSE (.+)$", FINAL, re.MULTILINE)
    assert exposed is not None
    ports = [address.rpartition(":")[2] for address in (loaded.client_addr, loaded.peer_addr, loaded.admin_addr)]
    assert exposed[1].split() == ports


def test_whoever_forgets_the_advertised_address_is_told() -> None:
    with pytest.raises(ConfigurationError, match="set advertise-peer-addr to what others shall call"):
        config.load({}, {"NEBULA_NAME": "n1"}, DEFAULTS)


def test_no_layer_can_hold_an_index_or_a_secret() -> None:
    assert "index" not in re.sub(r"--no-index|an index of your own", "", TEXT)
    assert "://" not in TEXT
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|PASSWORD|SECRET)", TEXT, re.MULTILINE)


def test_every_broken_image_differs_in_one_step() -> None:
    assert all(re.match(r"(RUN|STOPSIGNAL) [^\n]+$", step) for step in BROKEN.values())


class Readyz(BaseHTTPRequestHandler):
    status = 200
    text = "ok"

    def do_GET(self) -> None:
        status, text = (self.status, self.text) if self.path == "/readyz" else (404, "no such page")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{text}\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def node(status: int, text: str) -> Iterator[int]:
    """A node's admin port whose /readyz says so."""
    handler = type("Answer", (Readyz,), {"status": status, "text": text})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check(config_file: Path | None, **environ: str) -> tuple[int, str]:
    command = [sys.executable, "-I", "-S", str(HEALTHCHECK), *([str(config_file)] if config_file else [])]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_health_check_says_what_readyz_says() -> None:
    with node(200, "ok") as port:
        assert check(None, NEBULA_ADMIN_ADDR=f"0.0.0.0:{port}") == (0, "ok\n")
    with node(503, "no leader of group 2") as port:
        assert check(None, NEBULA_ADMIN_ADDR=f"0.0.0.0:{port}") == (1, "no leader of group 2\n")
    code, text = check(None, NEBULA_ADMIN_ADDR=f"127.0.0.1:{port}")
    assert code == 1
    assert text.startswith("the admin port does not answer: ")


def test_the_health_check_finds_the_port_where_the_node_does(tmp_path: Path) -> None:
    file = tmp_path / "nebulad.toml"
    with node(200, "ok") as port:
        file.write_text(f'admin-addr = "0.0.0.0:{port}"\n')
        assert check(file) == (0, "ok\n")
        file.write_text('admin-addr = "0.0.0.0:1"\n')
        assert check(file)[0] == 1
        assert check(file, NEBULA_ADMIN_ADDR=f"[::ffff:127.0.0.1]:{port}") == (0, "ok\n")


def test_the_health_check_s_default_is_the_node_s() -> None:
    assert f'DEFAULT = "{config.DEFAULTS["admin-addr"]}"' in HEALTHCHECK.read_text()


def test_the_version_that_compose_and_kubernetes_name_is_ours() -> None:
    assert f"nebuladb:{__version__}}}" in (ROOT / "deploy" / "compose.yaml").read_text()
    assert f"newTag: {__version__}\n" in (ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text()
