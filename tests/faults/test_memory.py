"""A producer faster than its broker, consumers faster and slower than their topic: they hold what they may."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rigs import Rig

pytestmark = pytest.mark.slow

#: Messages that go through each way, and after how many of them all windows are full (10,000 publishes, 1,000
#: prefetched); the long run takes a million (docs: "reliability").
WAYS = {"publish": (150_000, 60_000), "consume": (100_000, 40_000), "lag": (4_000, 2_000)}
#: Megabytes that may be more at the most than with full windows: arenas of the allocator, clients' buffers, and
#: callbacks that wait for a busy processor. What grew with the messages would be 90 and more.
MORE = 50.0


def held(rig: Rig, way: str, messages: int, full: int) -> dict[str, float]:
    """Megabytes with full windows, and at most after that."""
    program = str(Path(__file__).with_name("memory.py"))
    done = subprocess.run(
        [sys.executable, program, json.dumps(rig.settings), way, str(messages), str(full)],
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_memory_is_flat_each_way(rig: Rig) -> None:
    for way, (messages, full) in WAYS.items():
        found = held(rig, way, messages, full)
        assert found["most"] < found["first"] + MORE, f"{way}: {found}"
