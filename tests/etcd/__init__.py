"""The etcd face against etcd: a differential test, and a test for each line of what an etcd must get right."""
