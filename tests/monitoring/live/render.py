"""Make the picture of the dashboard that the documentation shows: ``tox -e dashboard``.

Two workers publish and consume on a real NATS and a real Kafka, a real Prometheus reads them, and the query of every
panel is put to it. NATS is killed in between, and comes back.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import queries
from draw import Series, draw
from plants import observed
from prometheus_server import filled_in

from incident_messaging.brokers import KafkaBroker, NatsServer

PICTURE = queries.MONITORING.parent / "_static" / "dashboard.png"

#: Seconds of the run, and of the time in it without NATS.
BEFORE, AWAY, AFTER = 70.0, 8.0, 50.0

#: Seconds between two looks at a worker, and over which Grafana would take a rate: four times that, at least.
SCRAPE, RATE = 1.0, 8.0


def main(target: Path) -> None:
    """Run, ask, draw; fails where a panel has nothing to show."""
    board = queries.dashboard()
    with NatsServer() as nats, KafkaBroker() as kafka:
        with observed({"nats": nats.url, "kafka": kafka.bootstrap_servers}, scrape_ms=int(SCRAPE * 1000)) as server:
            begin = time.time()
            time.sleep(BEFORE)
            nats.kill()
            time.sleep(AWAY)
            nats.start()
            time.sleep(AFTER)
            end = time.time()

            def series_of(panel_target: dict[str, Any]) -> Series:
                expr = filled_in(panel_target["expr"], rate_interval=RATE, shown=end - begin)
                found = server.over(expr, begin + RATE, end, SCRAPE)
                assert found, f"nothing to show: {expr}"
                return found

            note = (
                f"{end - begin:.0f} s of two workers on a NATS server and a Kafka broker, read by Prometheus; NATS was "
                "away for 8 s. Drawn from dashboard.json by tox -e dashboard, without Grafana"
            )
            draw(board, series_of, note, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
