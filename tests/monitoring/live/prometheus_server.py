"""A real Prometheus that reads processes of the SDK and is asked what the dashboard asks."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from incident_messaging.brokers.ports import HOST
from incident_messaging.brokers.process import BrokerProcess

HOW_TO_GET = "get both by: apt-get install prometheus"

#: Seconds that an answer may take.
PATIENCE = 10.0


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is; where it is not, nothing was tested, and that is an error."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no {name} on PATH: the dashboard and the alerts are not tested; {HOW_TO_GET}")
    return found


class Prometheus(BrokerProcess):
    """Reads the processes at these ports, and evaluates the alerts' rules; started and ended as brokers are."""

    kind = "Prometheus"

    def __init__(self, targets: Mapping[str, int], rules: Path, *, scrape_ms: int) -> None:
        super().__init__(None, None)
        self._targets = targets
        self._rules = rules
        self.scrape_secs = scrape_ms / 1000
        self._program = program("prometheus")

    def get(self, path: str, **parameters: Any) -> Any:
        """What the server's API answers."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def over(self, expr: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series of an expression over a time."""
        found: list[dict[str, Any]] = self.get("query_range", query=expr, start=begin, end=end, step=step)["result"]
        return found

    def _prepare(self) -> Sequence[str]:
        config = {
            "global": {
                "scrape_interval": f"{round(self.scrape_secs * 1000)}ms",
                "scrape_timeout": f"{round(self.scrape_secs * 1000)}ms",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(self._rules)],
            "scrape_configs": [
                {
                    "job_name": "incident-messaging",
                    "static_configs": [
                        {"targets": [f"{HOST}:{port}"], "labels": {"instance": name}}
                        for name, port in self._targets.items()
                    ],
                }
            ],
        }
        path = self.folder / "prometheus.yml"
        path.write_text(json.dumps(config), "utf-8")  # JSON is YAML, too
        return [
            self._program,
            f"--config.file={path}",
            f"--storage.tsdb.path={self.data_dir}",
            f"--web.listen-address={self.address}",
        ]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def filled_in(expr: str, *, rate_interval: float, shown: float) -> str:
    """An expression as Grafana sends it: every variable is All."""
    for name in ("backend", "topic", "instance"):
        expr = expr.replace(f"${name}", ".*")
    expr = expr.replace("$__rate_interval", f"{round(rate_interval)}s").replace("$__range", f"{round(shown)}s")
    assert "$" not in expr, expr
    return expr
