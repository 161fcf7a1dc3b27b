"""`nebula-cli`: the database from a shell.

What a script may rely on: exit 0 done, 1 refused or failed, with one line on stderr that says what to do, 2 wrong
usage, 3 nothing differs, but not everything could be compared (``check``); results on stdout and nothing else there;
keys and values as raw bytes with ``-o simple`` (the default), in base64 and one object a line with ``-o json``.
``get`` of a missing key prints nothing and exits 1.

What it won't do: ask questions, read a configuration file, or repeat a write that may have taken effect.

Inside: ``start`` imports ``main``, the command group; ``settings`` are the global options, ``output`` the styles,
``progress`` and ``parallel`` what long commands share. ``kv``, ``compact``, ``lease``, ``lock``, ``cluster``,
``status``, ``member``, ``snapshot``, ``etcd``, ``load``, ``dump`` and ``bench`` hold the commands; ``txntext`` is the
language of ``txn``, ``etcd_source`` reads an etcd, ``tree`` a directory, ``files`` is how a file lies in the database,
and ``latencies`` counts them for ``bench``.
"""
