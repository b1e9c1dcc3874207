"""Children of multiprocessing send what they handed over, however they were started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from app_kit import outcome
from server_kit import SITES, arrived, environment, words

pytestmark = pytest.mark.slow

CHILDREN = ["process0", "process1", "pool0", "pool1", "pool2", "pool3"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_flush_at_their_end_and_the_parent_goes_on(
    settings: dict[str, Any], tmp_path: Path, method: str
) -> None:
    command = [str(SITES / "multiprocessing_site.py"), method]
    code, _, errors = outcome(command, environment(settings), tmp_path)
    assert (code, errors) == (0, "")
    parent = ["parent before", "parent meanwhile", "parent after"]
    arrived(settings, parent + [word for child in CHILDREN for word in words(child)])
