"""What `nebulad dev` needs of a node: /readyz, /status with a pid, SIGTERM. `FAKE_DIES=n2` makes n2 exit at once,
`FAKE_REMOVED=n2` as one that was removed."""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"pid": int(os.environ.get("FAKE_PID", os.getpid()))}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    settings = tomllib.loads(Path(sys.argv[-1]).read_text())
    if os.environ.get("FAKE_DIES") == settings["name"]:
        sys.exit("the fake node was told to die")
    if os.environ.get("FAKE_REMOVED") == settings["name"]:
        sys.exit(3)
    host, port = settings["admin-addr"].rsplit(":", 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"fake {settings['name']} started")
    HTTPServer((host, int(port)), Page).serve_forever()


main()
