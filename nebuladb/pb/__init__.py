"""Messages generated from ``proto/`` by ``python -m tools.protos``; nothing here is written by hand."""
