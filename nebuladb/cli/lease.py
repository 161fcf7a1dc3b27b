"""lease grant, revoke, keep-alive, ttl, list."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import click

from nebuladb.cli.output import Field
from nebuladb.cli.settings import LEASE, Commands, Settings, hex_option, key_bytes, pass_settings
from nebuladb.client import AsyncClient
from nebuladb.kv.limits import MAX_LEASE_TTL, MIN_LEASE_TTL


@click.group("lease", cls=Commands)
def lease() -> None:
    """Leases: keys that live as long as somebody renews them.

    \b
    Example:
      nebula-cli lease grant 30
      nebula-cli put --lease 2199023255553 worker/1 alive
      nebula-cli lease keep-alive 2199023255553
    """


@lease.command()
@click.argument("ttl", type=click.IntRange(MIN_LEASE_TTL, MAX_LEASE_TTL))
@click.option("--key", default="", help="Place the lease in this key's shard.")
@hex_option
@pass_settings
def grant(settings: Settings, ttl: int, key: str, hexadecimal: bool) -> None:
    """Make a lease of TTL seconds, and print its id.

    \b
    Example:
      nebula-cli lease grant 30
    """
    name = key_bytes(key, hexadecimal)
    made = settings.run(lambda client: client.grant_lease(ttl, key=name))
    with settings.output() as output:
        output.row({"lease": made.id, "ttl": made.ttl}, str(made.id).encode())


@lease.command()
@click.argument("lease_id", metavar="LEASE", type=LEASE)
@pass_settings
def revoke(settings: Settings, lease_id: int) -> None:
    """End LEASE, and delete the keys attached to it.

    \b
    Example:
      nebula-cli lease revoke 2199023255553
    """
    settings.run(lambda client: client.revoke_lease(lease_id))
    with settings.output() as output:
        output.row({"lease": lease_id}, b"OK")


@lease.command("keep-alive")
@click.argument("lease_id", metavar="LEASE", type=LEASE)
@click.option("--once", is_flag=True, help="Renew it one time.")
@pass_settings
def keep_alive(settings: Settings, lease_id: int, once: bool) -> None:
    """Renew LEASE until Ctrl-C; exits 1 when the lease is lost.

    \b
    Example:
      nebula-cli lease keep-alive 2199023255553
    """

    async def work(client: AsyncClient) -> None:
        keeper = client.keep_alive(lease_id)
        with settings.output() as output:
            if once:
                await keeper.renew()
                output.row({"lease": lease_id, "ttl": keeper.ttl}, b"OK")
                return
            async with keeper:
                output.row({"lease": lease_id, "ttl": keeper.ttl}, b"OK")
                output.flush()
                await keeper.lost.wait()
                keeper.check()

    with suppress(KeyboardInterrupt):  # the way to end it
        settings.run(work)


@lease.command()
@click.argument("lease_id", metavar="LEASE", type=LEASE)
@click.option("--keys", is_flag=True, help="Also print the keys attached to it, one a line.")
@pass_settings
def ttl(settings: Settings, lease_id: int, keys: bool) -> None:
    """Print the seconds that LEASE has left.

    \b
    Example:
      nebula-cli lease ttl --keys 2199023255553
    """
    found = settings.run(lambda client: client.time_to_live(lease_id, keys=keys))
    fields: dict[str, Field] = {"lease": found.id, "ttl": found.ttl, "granted_ttl": found.granted_ttl}
    with settings.output() as output:
        output.row(fields, str(found.ttl).encode())
        for key in found.keys:
            output.row({"key": key}, key)


@lease.command("list")
@pass_settings
def list_(settings: Settings) -> None:
    """Print the ids of all leases.

    \b
    Example:
      nebula-cli lease list
    """
    with settings.output() as output:
        for found in settings.run(lambda client: client.leases()):
            output.row({"lease": found}, str(found).encode())


COMMANDS: Final = (lease,)
