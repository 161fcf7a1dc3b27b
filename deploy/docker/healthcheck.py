#!/usr/bin/env -S python3 -I -S
"""The container's HEALTHCHECK: exit code 0 if /readyz of the node in this container is 200, else 1 and why not.

It runs every few seconds beside the database, so it loads next to nothing: 20 ms of a core, where `nebula-cli` takes
300. It finds the admin port as `nebulad` does, in NEBULA_ADMIN_ADDR, else in the configuration file; a flag of
`nebulad`'s it can't see.
"""

import os
import socket
import sys

CONFIG = "/etc/nebula/nebulad.toml"
DEFAULT = "127.0.0.1:7381"
SECONDS = 5.3
"""A little more than the node takes at most to say "not ready", and less than the engine waits for us."""
MAX_ANSWER = 4096


def admin_address(config):
    """(host, port) where the admin port listens, as seen from here."""
    text = os.environ.get("NEBULA_ADMIN_ADDR")
    if not text and os.path.exists(config):
        import tomllib

        with open(config, "rb") as file:
            text = tomllib.load(file).get("admin-addr")
    host, _, port = (text or DEFAULT).rpartition(":")
    host = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)


def ask(address):
    """(whether it is 200, its text) of /readyz."""
    with socket.create_connection(address, timeout=SECONDS) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while len(answer) < MAX_ANSWER and (more := connection.recv(MAX_ANSWER)):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ", 2)[1:2] == [b"200"], body.decode(errors="replace").strip()


def main():
    """Prints the node's answer, which `docker inspect` shows."""
    try:
        ready, text = ask(admin_address(sys.argv[1] if len(sys.argv) > 1 else CONFIG))
    except (OSError, ValueError) as error:
        ready, text = False, f"the admin port does not answer: {error}"
    print(text)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
