"""What ``import incident_messaging`` takes in a new interpreter, and what it must not load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: What nobody pays for who only imports.
HEAVY = ("asyncio", "nats", "confluent_kafka")
_ROOT = Path(__file__).parents[2]
_WHICH = f"import incident_messaging, sys, json; print(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of new interpreters that do nothing, and of those that import, in turn."""
    found: dict[str, Any] = {"nothing": [], "import": [], "loaded": json.loads(_run(_WHICH)[1])}
    for _ in range(rounds):
        found["nothing"].append(_run("pass")[0])
        found["import"].append(_run("import incident_messaging")[0])
    return found


def _run(code: str) -> tuple[float, str]:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_ROOT)
    return time.perf_counter() - begun, done.stdout
