"""Other people's clients against three nodes of ours.

``etcdctl`` runs as it is. The Python clients run in an environment of their own (``make interop-setup``), each script
of ``clients`` in a process of its own: they bring protobuf modules that would meet ours in one process. What isn't
installed is skipped, and says so.
"""
