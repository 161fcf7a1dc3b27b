"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# Absolute times never fail a test: the machine may be busy with something else.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
