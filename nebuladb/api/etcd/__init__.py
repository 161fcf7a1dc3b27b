"""The etcd face: etcd's v3 API over a keyspace of one shard, `etcd` unless metadata ``nebula-keyspace`` names another.

It is a translation and nothing else: semantics live in ``kv``, where ``nebula.v1`` has them too. A handler gets a
request's bytes, makes of it what ``nebula.v1`` would have asked (commands carry the bodies of ``nebula.v1``, so the log
and the state machine know one language), and answers in etcd's words. What etcd 3.5 answers decides; where it is wrong
and we are not stands in ``docs/etcd.md``.

Errors: a handler raises `nebuladb.errors.NebulaError`s. ``errors.translate`` gives each the code and the very text of
etcd's, since clients match on the text; what etcd has no word for keeps ours.
"""
