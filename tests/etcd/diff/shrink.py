"""A failing sequence made smaller by leaving operations out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.etcd.diff.run import Difference


def shrink(
    numbers: Sequence[int], difference: Difference, again: Callable[[Sequence[int]], Difference | None], attempts: int
) -> tuple[list[int], Difference]:
    """Fewer of `numbers` that still end in a difference, and that one; `again` runs some of them, on fresh servers.

    First the last few alone, then all but one part, in ever smaller parts (Zeller's delta debugging, halves only).
    """
    kept, last = list(numbers), difference
    size = 1
    while size < len(kept) and attempts > 0:
        attempts -= 1
        found = again(kept[-size:])
        if found is not None:
            kept, last = [number for number in kept[-size:] if number <= found.operation], found
            break
        size *= 8
    part = max(1, len(kept) // 2)
    while attempts > 0 and len(kept) > 1:
        for start in range(0, len(kept), part):
            fewer = kept[:start] + kept[start + part :]
            if not fewer or attempts <= 0:
                break
            attempts -= 1
            found = again(fewer)
            if found is not None:
                kept, last = [number for number in fewer if number <= found.operation], found
                break
        else:
            if part == 1:
                break
            part //= 2
            continue
        part = min(part, max(1, len(kept) // 2))
    return kept, last
