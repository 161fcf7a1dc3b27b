"""How `nebulad` begins: it takes a part of a second to import, and a node more, and somebody may be in a hurry."""

from __future__ import annotations

import signal


def main() -> None:
    """Run it. Ctrl-C ends it as SIGTERM does until a node, or `dev`, hears both itself: without a traceback, and not
    lost in what an import makes of it."""
    # In the background of a script it is ignored, and stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nebuladb.server.main import main as nebulad

    nebulad()
