"""etcd's own integration tests of its API, against clusters of nebulad (``__main__``)."""
