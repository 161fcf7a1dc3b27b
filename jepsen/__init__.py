"""Real `nebulad` processes under real faults, judged by the simulator's checkers (docs/testing.md).

``python -m jepsen --workload register --nemesis partition,kill --seconds 60`` starts three nodes, lets clients work
while the nemeses hurt them, heals, waits until all serve again, reads once more, and judges the history. It leaves a
folder: ``history.jsonl``, ``verdict.txt``, ``faults.txt``, ``timeline.html``, the nodes' logs. The last line of stdout
is key=value; the exit code is 0 only if nothing was violated and faults bit.

Two networks (`network`): a network namespace for each node, where the machine allows them, with nftables and netem; or
loopback addresses with a faulty proxy between peers (`loopback`).

What it owes the machine: traffic goes to loopback or to namespaces of its own, which hang from the runner's process, so
that the kernel removes them when it ends, however it ends. Only processes that it started are signaled, by pid.

Pure: `schedule` (which fault when), `partitions` (who can't hear whom), `verdict`, and the ``check`` of each workload,
which sees nothing but the recorded history.
"""
