"""gunicorn's configuration file: what the master does when workers end, and at its own end."""

from __future__ import annotations

import os
import sys
from typing import Any

from prometheus_client import multiprocess


def child_exit(_server: Any, worker: Any) -> None:
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.mark_process_dead(worker.pid)


def on_exit(_server: Any) -> None:
    if "USED_BEFORE_FORK" in os.environ:
        site = sys.modules["server_site"]
        site.publish("parent at its end")
        site.kept.close()
