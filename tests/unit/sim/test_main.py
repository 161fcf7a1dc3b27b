"""What `python -m nebuladb.sim` refuses."""

from __future__ import annotations

import pytest

from nebuladb.sim.__main__ import main
from nebuladb.sim.faults import Faults
from nebuladb.sim.shrink import names

SEED = next(seed for seed in range(1, 100) if "keyspaces" in names(seed, 3, 1.0))
CLIENT = next(name for name in names(SEED, 3, 1.0) if "@" in name)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--seed", f"{SEED}", "--without", f"nonsense,{CLIENT}"], f"seed {SEED} has no nonsense; it has "),
        (["--seed", f"{SEED}", "--without", "nonsense1@9"], f"seed {SEED} has no nonsense1@9; it has "),
        (["--without", "loss"], "--without goes with --seed"),
    ],
)
def test_what_cannot_be_left_out(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert why in printed.err
    if "it has" in why:
        assert CLIENT in printed.err.partition("it has")[2]


def test_what_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also clients of a keyspace that a user makes, which nobody knows before the run."""
    ran: list[tuple[str, ...]] = []

    class Ran(Exception):
        pass

    def run(seed: int, *, without: tuple[str, ...], **_: object) -> None:
        ran.append(without)
        raise Ran

    monkeypatch.setattr("nebuladb.sim.__main__.run_seed", run)
    drawn = next(name for name in names(SEED, 3, 1.0) if hasattr(Faults(), name))
    with pytest.raises(Ran):
        main(["--seed", f"{SEED}", "--without", f"{drawn},{CLIENT},own1@9"])
    assert ran == [(drawn, CLIENT, "own1@9")]
