"""The command: ``python -m tools.compose_test``. See the package's docstring."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.compose_test.engine import Engine, engine
from tools.compose_test.image import BROKEN, break_image, build, import_base, size
from tools.compose_test.project import Project, base_port
from tools.compose_test.shell import Failure, Unavailable
from tools.compose_test.story import UP_SECONDS, Story, part_of

MIB: Final = 1 << 20
TREE_MIB: Final = 24
PUTS: Final = 100_000
BROKEN_TREE_MIB: Final = 16
"""So much that a quick machine is still loading when a third of it is noticed: with 2 MiB a quiet one was done."""
BROKEN_PUTS: Final = 1000
PATIENCE: Final = {"start": 30.0}
"""One that never becomes healthy is waited for that long: seconds, by the chapter that catches it."""
RUN: Final = f"nebulatest-{os.getpid()}-"
"""What the names of all that we make begin with."""
IMAGE: Final = f"nebuladb:{RUN}"
GOOD: Final = "good"
CAUGHT_IN: Final = {
    "program": "start",
    "volume": "revive",
    "healthcheck": "start",
    "drain": "drain",
    "root": "confine",
}
"""Where the test must find what is wrong with an image that was broken on purpose: not anywhere."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the story; `broken` is a key of `BROKEN`, or empty."""

    broken: str
    tree: Path
    puts: int
    patience: float


def _say(text: str) -> None:
    print(text, flush=True)


def _run(mine: Engine, trial: Trial, tag: str, scratch: Path, say: Callable[[str], None]) -> Story:
    """The story, from `up` to nothing left. Raises `Failure`, whose chapter is in the story that the caller has not."""
    name = RUN + (trial.broken or GOOD)
    with base_port() as base:
        project = Project(mine, name, tag, scratch, base)
        story = Story(project, trial.tree, trial.puts, scratch, say, trial.patience)
        try:
            story.run()
        except Failure as failure:
            failure.add_note(story.chapter)
            failure.add_note(f"--- what the nodes said last ---\n{project.logs()}---")
            if not trial.broken:
                say(failure.__notes__[-1])
            raise
        finally:
            project.down()
    return story


def _caught(mine: Engine, trial: Trial, good: str, scratch: Path) -> bool:
    """Whether the story fails, where it should, with an image that is broken."""
    tag = IMAGE + trial.broken
    mine.docker("tag", good, tag)
    try:
        break_image(mine, tag, trial.broken, scratch)
        _run(mine, trial, tag, scratch, lambda _: None)
    except Failure as failure:
        notes: list[str] = getattr(failure, "__notes__", ["the build"])
        where, *said = notes
        right = where == CAUGHT_IN[trial.broken]
        _say(f"Broken image, {trial.broken}: {'caught' if right else 'failed, but not where it should,'} in `{where}`:")
        _say(f"    {str(failure).splitlines()[0]}" if right else "\n".join([str(failure), *said]))
        return right
    finally:
        mine.attempt("image", "rm", "--force", tag)
    _say(f"Broken image, {trial.broken}: NOT caught.")
    return False


def _test(options: argparse.Namespace, scratch: Path, stack: ExitStack) -> dict[str, object]:
    """What to print at the end. Raises `Failure`."""
    mine = stack.enter_context(engine(scratch, options.engine, RUN, _say))
    _say(mine.version())
    began = time.monotonic()
    tag = IMAGE + GOOD
    if mine.own:
        base = import_base(mine, scratch, options.base)
        _say(f"Base image {base} from Debian's packages, {size(mine, base) / MIB:.0f} MiB.")
    build(mine, scratch, tag)
    stack.callback(mine.attempt, "image", "rm", "--force", tag)
    image = size(mine, tag)
    _say(f"Image built, {image / MIB:.0f} MiB with its base, {time.monotonic() - began:.0f} s.")
    broken = list(BROKEN) if options.self_test else [options.broken] if options.broken else []
    if broken:
        tree = part_of(options.tree, BROKEN_TREE_MIB * MIB, scratch / "tree")
        trials = [Trial(how, tree, BROKEN_PUTS, PATIENCE.get(CAUGHT_IN[how], UP_SECONDS)) for how in broken]
        caught = sum(_caught(mine, trial, tag, scratch) for trial in trials)
        return {"self_test": len(trials), "caught": caught, "verdict": "ok" if caught == len(trials) else "failed"}
    tree = part_of(options.tree, options.mib * MIB, scratch / "tree")
    story = _run(mine, Trial("", tree, options.puts, UP_SECONDS), tag, scratch, _say)
    return {"image_mib": image // MIB, "files": len(story.expected), "puts": options.puts, "verdict": "ok"}


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.compose_test", description=__doc__)
    parser.add_argument("--engine", choices=("auto", "running", "own"), default="auto", help="which engine to use")
    parser.add_argument("--require", action="store_true", help="fail, instead of skip, where no engine can be had")
    parser.add_argument("--tree", type=Path, default=Path(sysconfig.get_path("stdlib")), help="files to load")
    parser.add_argument("--mib", type=int, default=TREE_MIB, help="how much of them")
    parser.add_argument("--puts", type=int, default=PUTS, help="how many puts of 1 KiB besides")
    parser.add_argument("--base", type=Path, help="tar file of the base image: taken from there, or left there")
    parser.add_argument("--break", dest="broken", choices=sorted(BROKEN), help="break the image so; exits 0 if caught")
    parser.add_argument("--self-test", action="store_true", help="break it in every way; exits 0 if all are caught")
    return parser.parse_args(words)


def _terminated(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def main(words: list[str] | None = None) -> int:
    """The exit code; the last line on stdout has the verdict."""
    options = _arguments(words)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="nebula-compose-") as directory, ExitStack() as stack:
            found = _test(options, Path(directory), stack)
    except Unavailable as why:
        print(f"SKIPPED: no container was run. {why}", file=sys.stderr)
        _say("verdict=skipped")
        return 1 if options.require else 0
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        _say("verdict=failed")
        return 1
    _say(" ".join(f"{key}={value}" for key, value in {**found, "seconds": f"{time.monotonic() - began:.0f}"}.items()))
    return 0 if found["verdict"] == "ok" else 1


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)  # so that everything is removed
    sys.exit(main())
