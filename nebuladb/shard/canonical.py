"""Canonical JSON: equal fields have equal bytes, on every node and in every build."""

from __future__ import annotations

import json
from collections.abc import Mapping


def canonical(fields: Mapping[str, object]) -> bytes:
    """`fields`, of what JSON knows, as UTF-8 with sorted names and no blanks."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
