"""The documentation's example of a backend keeps the contract: the conformance suite's cases run on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]
TESTS = TOP / "tests"
FOLDERS = (TOP / "docs" / "examples", TESTS / "release", TESTS / "conformance", TESTS)

#: Those that ask most of a backend, in two parts that run side by side: they wait more than they work.
PARTS = (
    ["test_dead_letters.py", "test_callbacks.py", "-k", "not redriven_to"],
    ["test_places.py", "-k", "restart or share or did_not_acknowledge or start"],
)
SECONDS = 90


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "sqlite_conformance", "-p", "no:cacheprovider", *arguments],
        cwd=TESTS / "conformance",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, FOLDERS))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_example_keeps_the_contract() -> None:
    running = [start(*arguments) for arguments in PARTS]
    said = [process.communicate(timeout=SECONDS)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    assert sum(int(re.search(r"(\d+) passed", text)[1]) for text in said) >= 40, said  # type: ignore[index]
    assert all(int(re.search(r"on SQLite: (\d+) services", text)[1]) for text in said)  # type: ignore[index]
