"""``python -m incident_messaging.brokers``: one NATS and one Kafka until Ctrl-C (or SIGTERM)."""

from __future__ import annotations

import signal
import sys

from incident_messaging.brokers import BrokerError, KafkaBroker, NatsServer


def main() -> int:
    """Run both, print where they are, and wait; 1 when one of them could not be started."""
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    print("starting NATS and Kafka (the first time Kafka is fetched, up to a minute)", flush=True)  # noqa: T201
    try:
        with NatsServer() as nats, KafkaBroker() as kafka:
            signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
            print(f"NATS   {nats.url}  (monitoring {nats.monitor_url})", flush=True)  # noqa: T201
            print(f"Kafka  {kafka.bootstrap_servers}", flush=True)  # noqa: T201
            print("Ctrl-C ends both; their data is deleted", flush=True)  # noqa: T201
            signal.sigwait(stop_signals)
    except BrokerError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
