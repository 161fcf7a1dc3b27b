"""How `nebula-cli` begins: its commands take a third of a second to import, and somebody may be in a hurry."""

from __future__ import annotations

import signal


def main() -> None:
    """Run it. Ctrl-C meanwhile ends it as it ends any program, and without a traceback."""
    # In the background of a script it is ignored, and stays so.
    hurries = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hurries:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nebuladb.cli.main import main as commands

    if hurries:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    commands()
