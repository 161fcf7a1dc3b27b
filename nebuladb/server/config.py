"""What a node is told: flags, then the environment, then a TOML file, then defaults."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nebuladb.addresses import is_unspecified, split_address
from nebuladb.errors import ConfigurationError
from nebuladb.node.memory import DEFAULT_MEMORY, MAX_MEMORY, MIN_MEMORY
from nebuladb.node.record import MAX_MEMBERS, MAX_NODE_NAME, NODE_NAME
from nebuladb.server import options
from nebuladb.server.space import SIZES

ENV_PREFIX: Final = "NEBULA_"
ENV_OF_THE_CLI: Final = frozenset({"NEBULA_ENDPOINTS", "NEBULA_LOCK_TOKEN"})
# A Kubernetes service called "nebula" puts these into every pod; refusing them would keep the pod from starting.
ENV_OF_KUBERNETES: Final = re.compile(r"NEBULA_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP).*)?)")

SIZE: Final = re.compile(r"(\d{1,15}) ?([KMG]iB|B)")
RPC_ENGINES: Final = ("nebula", "grpcio")
"""As in ``rpc.engine``, which `nebulad --help` need not load."""
LOG_FORMATS: Final = ("auto", "console", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

DEFAULTS: Final[Mapping[str, str]] = {
    "name": "n1",
    "data-dir": "nebula-data",
    "client-addr": "127.0.0.1:7379",
    "peer-addr": "127.0.0.1:7380",
    "admin-addr": "127.0.0.1:7381",
    "advertise-client-addr": "",
    "advertise-peer-addr": "",
    "initial-cluster": "",
    "join": "",
    "memory": "512MiB",
    "rpc-engine": RPC_ENGINES[0],
    "log-format": "auto",
    "log-level": "info",
    **options.DEFAULTS,
}
"""Every setting, under the name that its flag and TOML key have. Empty means "not given"."""


class WrongSetting(ConfigurationError):
    """A setting that only a start shows to be wrong, and that another start won't mend."""


@dataclass(frozen=True, slots=True)
class Config:
    """One node's settings, complete and valid. Addresses are HOST:PORT; `load` is the way to make one."""

    name: str
    data_dir: Path
    """Absolute."""
    client_addr: str
    peer_addr: str
    admin_addr: str
    advertise_client_addr: str
    advertise_peer_addr: str
    initial_cluster: Mapping[str, str]
    """Name to peer address, sorted by name, this node among them. Empty exactly when `join` is given."""
    join: str
    """Any member's peer address, or empty."""
    memory: int = DEFAULT_MEMORY
    """Budget for caches, memtables and queues, in bytes (``node.memory``)."""
    rpc_engine: str = RPC_ENGINES[0]
    """Which gRPC serves clients and peers (``rpc.engine``)."""
    log_format: str = "auto"
    log_level: str = "info"
    options: tuple[tuple[str, str], ...] = tuple(options.DEFAULTS.items())
    """The node's options as texts, valid (``server.options``)."""

    def check_founding(self) -> None:
        """Raise `WrongSetting` if the listed cluster knows this node under another address: the others would be told
        that one once it is founded, and lose the node. Or if it would ask itself to let it in, and so wait for ever.

        Only for a node that belongs to no cluster yet: later both are ignored, and the address may change.
        """
        if self.join and self.join in (self.advertise_peer_addr, self.peer_addr):
            raise WrongSetting(f"join: {self.join} is this node's own peer address; give that of a member")
        listed = self.initial_cluster.get(self.name, self.advertise_peer_addr)
        if listed != self.advertise_peer_addr:
            raise WrongSetting(
                f"initial-cluster says {self.name}={listed}, but this node's peers would be told "
                f"{self.advertise_peer_addr}; make them equal, to the letter, or set advertise-peer-addr, or is "
                f"{self.name} another node's name?"
            )

    def to_toml(self, directory: Path) -> str:
        """A configuration file that, put into `directory`, loads as this again (but for defaults of its own)."""
        inside = self.data_dir.is_relative_to(directory)
        settings = {
            "name": self.name,
            "data-dir": os.path.relpath(self.data_dir, directory) if inside else str(self.data_dir),
            "client-addr": self.client_addr,
            "peer-addr": self.peer_addr,
            "admin-addr": self.admin_addr,
            "advertise-client-addr": self.advertise_client_addr,
            "advertise-peer-addr": self.advertise_peer_addr,
            "initial-cluster": ",".join(f"{name}={address}" for name, address in self.initial_cluster.items()),
            "join": self.join,
            "memory": _size_text(self.memory),
            "rpc-engine": self.rpc_engine,
            "log-format": self.log_format,
            "log-level": self.log_level,
            **{key: text for key, text in self.options if text != options.DEFAULTS[key]},
        }
        return "".join(f"{key} = {_toml_string(value)}\n" for key, value in settings.items() if value)


@dataclass(frozen=True, slots=True)
class _Setting:
    """A raw value and where it came from, for the error that may follow."""

    key: str
    text: str
    origin: str

    def wrong(self, why: object) -> ConfigurationError:
        return ConfigurationError(f"{self.key} ({self.origin}): {why}")


def load(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path | None = None) -> Config:
    """The configuration from `flags` (by name, None = not given), `environ`, `file` and the defaults, in this order.

    A relative data-dir in the file is taken from the file's directory, so that the directory can be moved.
    Raises `ConfigurationError` that names the setting and where it came from.
    """
    settings = {key: _Setting(key, text, "default") for key, text in DEFAULTS.items()}
    if file is not None:
        settings.update(_from_file(file))
    settings.update(_from_environment(environ))
    for key, text in flags.items():
        if text is not None:
            settings[key] = _Setting(key, text, f"flag --{key}")
    return _validated(settings)


def _toml_string(text: str) -> str:
    """A JSON string is a TOML basic string, except that TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _from_file(file: Path) -> dict[str, _Setting]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"config file {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config file {file}: {error}") from error
    settings: dict[str, _Setting] = {}
    for key, value in document.items():
        if key not in DEFAULTS:
            raise ConfigurationError(f"{key} (file {file}): no such setting; there are {', '.join(DEFAULTS)}")
        if key == "initial-cluster" and isinstance(value, dict):
            value = ",".join(f"{name}={address}" for name, address in value.items())
        if not isinstance(value, str):
            raise ConfigurationError(f"{key} (file {file}): must be a string in quotes, not {value!r}")
        if key == "data-dir" and value:
            value = str(file.absolute().parent / value)
        settings[key] = _Setting(key, value, f"file {file}")
    return settings


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Setting]:
    known = {ENV_PREFIX + key.replace("-", "_").upper(): key for key in DEFAULTS}
    settings: dict[str, _Setting] = {}
    for variable in sorted(environ):
        if variable in known:
            settings[known[variable]] = _Setting(known[variable], environ[variable], f"environment {variable}")
        elif (
            variable.startswith(ENV_PREFIX)
            and variable not in ENV_OF_THE_CLI
            and not ENV_OF_KUBERNETES.fullmatch(variable)
        ):
            raise ConfigurationError(f"environment {variable}: no such setting; there are {', '.join(known)}")
    return settings


def _validated(settings: Mapping[str, _Setting]) -> Config:
    name = settings["name"]
    if not NODE_NAME.fullmatch(name.text):
        raise name.wrong(
            f"{name.text!r} is not a name: up to {MAX_NODE_NAME} letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    _check_directory(settings["data-dir"])
    listen = {key: _address(settings[key]) for key in ("client-addr", "peer-addr", "admin-addr")}
    owner: dict[str, str] = {}
    for key, address in listen.items():
        if address in owner:
            raise settings[key].wrong(f"{address} is taken by {owner[address]}; each needs a port of its own")
        owner[address] = key
    advertise_peer = _advertised(settings, "advertise-peer-addr", "peer-addr")
    cluster = _cluster(settings, advertise_peer)
    return Config(
        name=name.text,
        data_dir=Path(os.path.abspath(settings["data-dir"].text)),
        client_addr=listen["client-addr"],
        peer_addr=listen["peer-addr"],
        admin_addr=listen["admin-addr"],
        advertise_client_addr=_advertised(settings, "advertise-client-addr", "client-addr"),
        advertise_peer_addr=advertise_peer,
        initial_cluster=cluster,
        join=settings["join"].text and _address(settings["join"]),
        memory=_size(settings["memory"]),
        rpc_engine=_choice(settings["rpc-engine"], RPC_ENGINES),
        log_format=_choice(settings["log-format"], LOG_FORMATS),
        log_level=_choice(settings["log-level"], LOG_LEVELS),
        options=_options(settings),
    )


def _check_directory(setting: _Setting) -> None:
    """That it can be a directory's name. RocksDB takes one in UTF-8 only."""
    if not setting.text:
        raise setting.wrong("must not be empty")
    if "\0" in setting.text:
        raise setting.wrong(f"{setting.text!r} has a NUL, which no directory has in its name")
    try:
        os.path.abspath(setting.text).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(os.path.abspath(setting.text))
        raise setting.wrong(f"{name!r} is not UTF-8; name a directory whose whole path is") from error


def _options(settings: Mapping[str, _Setting]) -> tuple[tuple[str, str], ...]:
    texts = {key: settings[key].text for key in options.DEFAULTS}
    try:
        options.parse(texts)
        options.reserves(texts)
        options.progress_seconds(texts)
    except ConfigurationError as error:
        key, _, why = error.message.partition(": ")
        raise settings[key].wrong(why) from error
    return tuple(texts.items())


def _address(setting: _Setting) -> str:
    try:
        split_address(setting.text)
    except ConfigurationError as error:
        raise setting.wrong(error) from error
    return setting.text


def _advertised(settings: Mapping[str, _Setting], key: str, listen_key: str) -> str:
    """What others are told: the setting itself, else the listen address if somebody elsewhere could reach it."""
    if not settings[key].text:
        listen = settings[listen_key]
        if is_unspecified(_address(listen)):
            raise listen.wrong(f"{listen.text} can be listened at but not called; set {key} to what others shall call")
        return listen.text
    if is_unspecified(_address(settings[key])):
        raise settings[key].wrong(f"{settings[key].text} can't be called by others")
    return settings[key].text


def _cluster(settings: Mapping[str, _Setting], advertise_peer: str) -> dict[str, str]:
    setting, name = settings["initial-cluster"], settings["name"].text
    if settings["join"].text:
        if setting.text:
            raise setting.wrong(f"a node founds a cluster or joins one; drop this or join ({settings['join'].origin})")
        return {}
    if not setting.text:
        return {name: advertise_peer}
    cluster: dict[str, str] = {}
    for part in setting.text.split(","):
        member, equals, address = (piece.strip() for piece in part.partition("="))
        if not equals or not NODE_NAME.fullmatch(member):
            raise setting.wrong(f"{part!r} is not NAME=HOST:PORT")
        if member in cluster:
            raise setting.wrong(f"{member} stands there twice")
        if is_unspecified(_address(_Setting(setting.key, address, setting.origin))):
            raise setting.wrong(f"{member}={address} can't be called by others")
        if address in cluster.values():
            raise setting.wrong(f"two nodes have the address {address}")
        cluster[member] = address
    if name not in cluster:
        raise setting.wrong(f"this node's name {name!r} is not in it; it lists {', '.join(sorted(cluster))}")
    if len(cluster) > MAX_MEMBERS:
        raise setting.wrong(f"it lists {len(cluster)} nodes; at most {MAX_MEMBERS} can found a cluster")
    return dict(sorted(cluster.items()))


def _size(setting: _Setting) -> int:
    """Bytes of a text like 512MiB."""
    match = SIZE.fullmatch(setting.text)
    if match is None:
        raise setting.wrong(f"{setting.text!r} is not a size; write a number with {', '.join(SIZES)}")
    size = int(match[1]) * SIZES[match[2]]
    if size < MIN_MEMORY:
        raise setting.wrong(f"{setting.text} is too little; a node needs {_size_text(MIN_MEMORY)} at least")
    if size > MAX_MEMORY:
        raise setting.wrong(f"{setting.text} is too much; a node takes {_size_text(MAX_MEMORY)} at most")
    return size


def _size_text(size: int) -> str:
    """The shortest text that is this size."""
    unit = next(unit for unit in reversed(list(SIZES)) if size % SIZES[unit] == 0)
    return f"{size // SIZES[unit]}{unit}"


def _choice(setting: _Setting, choices: tuple[str, ...]) -> str:
    if setting.text not in choices:
        raise setting.wrong(f"{setting.text!r} is not one of {', '.join(choices)}")
    return setting.text
