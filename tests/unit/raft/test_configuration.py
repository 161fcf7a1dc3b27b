"""A configuration's bytes, beyond those that ``tests/unit/node/test_formats.py`` holds."""

from __future__ import annotations

import pytest

from nebuladb.errors import Corruption
from nebuladb.raft import Configuration


def test_flags_that_nobody_knows_are_refused() -> None:
    """They would be taken for `auto_leave`."""
    data = Configuration((1, 2, 3), (1, 2), auto_leave=True).encode()
    assert Configuration.decode(data).auto_leave
    with pytest.raises(Corruption, match="flags 2"):
        Configuration.decode(data[:1] + b"\x02" + data[2:])
