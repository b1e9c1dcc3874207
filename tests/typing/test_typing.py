"""Types are part of the product: user code passes ``mypy --strict``."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.slow
def test_user_code_passes_mypy_strict(tmp_path: Path) -> None:
    options = ["--strict", "--warn-unreachable", "--config-file=", "--cache-dir", str(ROOT / ".mypy_cache" / "user")]
    report, trouble, status = api.run([*options, str(HERE / "user_code.py")])
    assert (status, trouble) == (0, ""), report
