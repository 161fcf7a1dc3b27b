"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# Absolute times never fail a test: the machine may be busy with something else.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A script's "&" ignores Ctrl-C for what it runs, and nohup a hang-up; so would each process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
