"""Where the examples are, and how a test starts one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app_kit import App

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"

#: Takes the words of a command after ``python``.
Start = Callable[..., App]
