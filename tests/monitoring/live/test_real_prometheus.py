"""Real workers on real brokers, read by a real Prometheus: each panel shows something, and the alerts are right."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import queries
from plants import observed
from prometheus_server import Prometheus, filled_in, program
from waiting import until

BOARD = queries.dashboard()

#: Seconds by which every panel has something to show.
PATIENCE = 40.0


@pytest.fixture(scope="module")
def prometheus(nats_server: Any, kafka_broker: Any) -> Iterator[Prometheus]:
    addresses = {"nats": nats_server.url, "kafka": kafka_broker.bootstrap_servers}
    with observed(addresses, scrape_ms=500) as server:
        yield server


def shows(prometheus: Prometheus, expr: str) -> bool:
    """Whether an expression has a value that is not zero."""
    asked = filled_in(expr, rate_interval=4, shown=PATIENCE)
    found = prometheus.get("query", query=asked)["result"]
    return any(math.isfinite(value) and value != 0 for value in (float(each["value"][1]) for each in found))


@pytest.mark.slow
def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    empty = set(queries.of_dashboard(BOARD))

    def none_is_empty() -> bool:
        empty.difference_update([query for query in empty if shows(prometheus, query.expr)])
        return not empty

    assert until(none_is_empty, PATIENCE), f"nothing to show: {sorted(query.where for query in empty)}"


@pytest.mark.slow
def test_every_variable_has_its_values(prometheus: Prometheus) -> None:
    found = {}
    for variable in BOARD["templating"]["list"][1:]:
        inside = variable["definition"].removeprefix("label_values(").removesuffix(f", {variable['name']})")
        match = filled_in(inside, rate_interval=4, shown=PATIENCE)
        found[variable["name"]] = set(prometheus.get(f"label/{variable['name']}/values", **{"match[]": match}))
    assert found["backend"] == {"nats", "kafka"}
    assert found["instance"] == {"worker-nats", "worker-kafka"}
    assert {"incidents.created", "reports.daily", "tickets.opened"} <= found["topic"]


@pytest.mark.slow
def test_alerts_that_wait_for_nothing_are_raised(prometheus: Prometheus) -> None:
    expected = {"MessagingDeadLetters", "MessagingUndecodable", "MessagingOutboxParked"}

    def firing() -> set[str]:
        alerts = prometheus.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    assert until(lambda: firing() >= expected), firing()
    assert firing() - expected <= {"MessagingDeadLettersMany"}, "which is right where the run takes long"
    groups = prometheus.get("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


@pytest.mark.parametrize("arguments", [("check", "rules", queries.ALERTS), ("test", "rules", "alerts_test.yml")],
                         ids=["check", "test"])  # fmt: skip
def test_promtool_accepts_the_alerts(arguments: tuple[Any, ...]) -> None:
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, cwd=queries.Path(__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
