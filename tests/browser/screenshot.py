"""Take the picture of the incident console that the documentation shows: ``python tests/browser/screenshot.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsing import console, window
from scene import play

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.brokers import NatsServer

PICTURE = Path(__file__).parents[2] / "docs" / "_static" / "console.png"


def main(target: Path) -> None:
    with NatsServer() as broker:
        environment = {"INCIDENT_MESSAGING_NATS__SERVERS": broker.url, "INCIDENT_MESSAGING_RETRY__MAX_ATTEMPTS": "1"}
        with MessagingService(MessagingConfig.from_env(environ=environment)) as service:
            play(service)
        with console(environment) as server, window() as browser:
            browser.shape(1200, 810)
            browser.open(server.url)
            browser.sees("2", lambda: browser.text("#dead-count"))
            browser.sees(4, lambda: len(browser.listed()))
            target.parent.mkdir(exist_ok=True)
            browser.driver.save_screenshot(str(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
