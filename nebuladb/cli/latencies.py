"""Latencies of any number of calls, in little memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

RATIO: Final = 1.01
"""Of a bucket's upper end to its lower one."""
SHORTEST: Final = 1e-6
"""Seconds; shorter ones count as that. So there are 2,100 buckets up to a quarter of an hour."""


class Latencies:
    """Counts in buckets of 1 %, so a percentile is right to half a percent; the longest is kept as it is."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.longest = 0.0
        """Seconds."""

    def add(self, seconds: float) -> None:
        """One more call, which took so long."""
        self._buckets[int(math.log(max(seconds / SHORTEST, 1.0), RATIO))] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def percentile(self, share: float) -> float:
        """Seconds within which this part of the calls was answered, from 0 to 1; 0 if there were none."""
        wanted = max(math.ceil(share * self.count), 1)
        for bucket, count in sorted(self._buckets.items()):
            wanted -= count
            if wanted <= 0:
                return min(SHORTEST * math.pow(RATIO, bucket + 0.5), self.longest)
        return 0.0
