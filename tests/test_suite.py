"""`make test` fails if one of its runs of pytest does, and says what all found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tools import suite

SECONDS: Final = 60
PROGRAM: Final = """
import sys
from pathlib import Path
from tools.suite import run
sys.exit(run({"first": ["one"], "second": ["two"]}, Path(sys.argv[1])))
"""
PASSES: Final = "def test_a(): pass\n"
FAILS: Final = "def test_b(): assert not 'broken'\n"
SKIPS: Final = "import pytest\n@pytest.mark.skip\ndef test_c(): pass\n"
BREAKS: Final = "import nothing_of_this_name\n"
ENDS: Final = "import os\ndef test_d(): os._exit(9)\n"
WAITS: Final = "def test_e():\n    open('waits', 'w').close()\n    while True: pass\n"
"""It spins: before `signal.pause` a signal could come too early."""


def begin(root: Path, one: str, two: str) -> subprocess.Popen[str]:
    """Two runs of one file each."""
    for name, source in (("one", one), ("two", two)):
        (root / name).mkdir()
        (root / name / f"test_{name}.py").write_text(source)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root)],
        cwd=suite.ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": "-p no:asyncio -p no:hypothesispytest"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def printed(process: subprocess.Popen[str]) -> str:
    """What it prints until it ends."""
    try:
        return process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.mark.parametrize(
    ("one", "two", "total", "code"),
    [
        pytest.param(PASSES, SKIPS, "1 passed, 1 skipped in ", 0, id="both pass"),
        pytest.param(PASSES, FAILS, "1 failed, 1 passed in ", 1, id="the second fails"),
        pytest.param(FAILS, PASSES, "1 failed, 1 passed in ", 1, id="the first fails"),
        pytest.param(PASSES, BREAKS, "1 passed, 1 error in ", 2, id="one cannot be read"),
        pytest.param(PASSES, ENDS, "1 passed in ", 9, id="one ends without a word"),
    ],
)
def test_both_must_pass(tmp_path: Path, one: str, two: str, total: str, code: int) -> None:
    with begin(tmp_path, one, two) as process:
        output = printed(process)
    last = output.splitlines()[-3:]
    assert process.returncode == code, output
    assert last[0].startswith("first: ")
    assert last[1].startswith("second: ")
    assert last[2].startswith(total)
    assert ("not 'broken'" in output) == (FAILS in {one, two}), "what failed is shown, whichever run it was of"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    with begin(tmp_path, PASSES, WAITS) as process:
        while not (tmp_path / "waits").exists():
            assert process.poll() is None
        if number is signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        output = printed(process)
    assert process.returncode != 0, output


def test_between_them_they_run_each_file_once() -> None:
    dealt = Counter(file for files in suite.parts().values() for file in files)
    assert dealt == {str(file.relative_to(suite.ROOT)): 1 for file in Path(suite.ROOT, "tests").rglob("test_*.py")}
    assert all(suite.parts().values())
