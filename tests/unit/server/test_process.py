"""What the process asks of its system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nebuladb.server.process import DESCRIPTORS

PROGRAM = """
import resource, sys
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from nebuladb.server.process import raise_descriptors
told = raise_descriptors()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (told, hard)
print(told)
"""


@pytest.mark.parametrize(("soft", "hard", "now"), [(64, 512, 512), (256, 256, 256), (100, None, None)])
def test_descriptors_are_raised_as_far_as_the_hard_limit(soft: int, hard: int | None, now: int | None) -> None:
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    hard = most if hard is None else hard
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (now or (DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, DESCRIPTORS)))
