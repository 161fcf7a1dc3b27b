"""What grpcio-tools makes of echo.proto, made when it is needed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from grpc_tools import protoc

PROTO = Path(__file__).with_name("echo.proto")


def compiled(folder: Path) -> tuple[Any, Any]:
    """(messages, services), generated into `folder`; once a process, since protobuf knows a file by its name."""
    if "echo_pb2" not in sys.modules:
        code = protoc.main(
            ["protoc", f"-I{PROTO.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}", PROTO.name]
        )
        assert code == 0
        _load(folder / "echo_pb2.py")
        _load(folder / "echo_pb2_grpc.py")
    return sys.modules["echo_pb2"], sys.modules["echo_pb2_grpc"]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
