"""The daemon `nebulad`: everything around a node that is neither database nor protocol.

What is here: the configuration (``config``), the commands `start` and `dev` (``main``, ``dev``), signals and the pid
file (``lifecycle``), logging (``logs``), metrics (``metrics``) and the admin port (``admin``). ``assembly`` puts a
node together from a `Config` and serves; its `run(config) -> int` blocks until a signal and returns the exit code.

What a caller owes it: `start` is one process and one event loop; nobody else installs signal handlers or writes to the
data directory. What it raises: `ConfigurationError` with the setting and where it came from (exit code 2); every other
`NebulaError` while a node starts (exit code 1) says what to do. What it won't do: put keys, values or credentials into
a log line, wait for a slow reader of its logs, or let anything on the admin port disturb the database.

Only here, in ``client`` and in ``cli`` may the operating system be asked for time and randomness.
"""
