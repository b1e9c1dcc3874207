"""The gauge of connections is zero where a broker is missed, and is not there where nobody uses one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

#: A process of its own: the gauge is the process's, and prometheus_client chooses its mode when it is imported.
PROGRAM = """
import json, os, sys
from prometheus_client import REGISTRY, CollectorRegistry, multiprocess
from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.metrics import Meter

def read():
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry := CollectorRegistry())
    return [registry.get_sample_value("messaging_active_connections", {"backend": each}) for each in ("nats", "memory")]

def tell(what):
    print(json.dumps([what, *read()]), flush=True)

away = MessagingService(MessagingConfig(backend="nats", nats={"servers": ["nats://127.0.0.1:1"]}))
first, second = (MessagingService(MessagingConfig(backend="memory")) for _ in range(2))
tell("none is used")
try:
    away.connect(5.0)
except Exception as error:
    assert error.code == "unreachable", error
tell("one was never there")
first.connect()
second.connect()
tell("two are connected")
first.close()
tell("one of two is closed")
sys.stdout.flush()
if "fork" in sys.argv:
    child = os.fork()
    if not child:
        tell("a child uses none")
        os._exit(0)
    os.waitpid(child, 0)
second.close()
second.close()
away.close()
tell("all are closed")

meter = Meter(enabled=True, topic_limit=1)
meter.connected("nats", 0, users=1)
meter.connected("nats", 0, users=-1)
meter.connected("nats", 1)  # by a look that began before the close
tell("a look is late")
meter.connected("nats", -1)
tell("it is made good")
Meter(enabled=False, topic_limit=1).connected("nats", 1, users=1)
tell("metrics are off")
"""


def told(*arguments: str, folder: Path | None = None) -> dict[str, list[float | None]]:
    """What the gauge of NATS and of the memory said at each point."""
    environment = os.environ | ({} if folder is None else {"PROMETHEUS_MULTIPROC_DIR": str(folder)})
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {what: values for what, *values in map(json.loads, done.stdout.splitlines())}


def test_zero_says_that_a_broker_is_missed() -> None:
    assert told("fork") == {
        "none is used": [None, None],
        "one was never there": [0, None],
        "two are connected": [0, 2],
        "one of two is closed": [0, 1],
        "a child uses none": [None, None],
        "all are closed": [None, None],
        "a look is late": [1, None],
        "it is made good": [None, None],
        "metrics are off": [None, None],
    }


def test_over_several_processes_a_zero_stays(tmp_path: Path) -> None:
    said = told(folder=tmp_path)
    assert said["none is used"] == [None, None]
    assert said["one was never there"] == [0, None]
    assert said["one of two is closed"] == [0, 1]
    assert said["all are closed"] == [0, 0], "prometheus_client cannot take it away, and says so where it is told to"
    assert said["a look is late"] == [1, 0]
