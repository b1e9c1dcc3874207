"""Where and of what something was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path


def described() -> dict[str, object]:
    """Cores, Python, system, commit and date."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": " ".join([platform.system(), ".".join(platform.release().split(".")[:2])]),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit, and whether what is measured or measures differs from it."""
    commit, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "incident_messaging", "tests")
    return f"{commit} with changes" if changes else commit


def _git(*arguments: str) -> str:
    asked, root = ["git", *arguments], Path(__file__).parents[2]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=root, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip()
