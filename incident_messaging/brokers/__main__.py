"""``python -m incident_messaging.brokers``: one NATS and one Kafka until Ctrl-C (or SIGTERM)."""

from __future__ import annotations

import argparse
import signal
import sys

from incident_messaging.brokers import BrokerError, KafkaBroker, NatsServer


def main(arguments: list[str] | None = None) -> int:
    """Run both, print where they are, and wait; 1 when one of them could not be started."""
    ports = wanted_ports(arguments)
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    print("starting NATS and Kafka (the first time Kafka is fetched, up to a minute)", flush=True)  # noqa: T201
    try:
        with NatsServer(port=ports.nats_port) as nats, KafkaBroker(port=ports.kafka_port) as kafka:
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


def wanted_ports(arguments: list[str] | None) -> argparse.Namespace:
    """The ports that the command line names, ``None`` for one that it does not."""
    parser = argparse.ArgumentParser(
        prog="python -m incident_messaging.brokers",
        description="Run one NATS server and one Kafka on this machine until Ctrl-C. Their data is deleted at the end.",
        epilog="Exit code: 0 after Ctrl-C or SIGTERM, 1 if a broker could not be started, 2 for wrong usage, "
        "130 for Ctrl-C during the start.",
    )
    for broker, usual in (("nats", 4222), ("kafka", 9092)):
        help_text = f"the port, usually {usual}; one that is free where it is not given"
        parser.add_argument(f"--{broker}-port", type=_port, metavar="PORT", help=help_text)
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdecimal() else 0
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: allowed is a whole number from 1 to 65535")
    return port


if __name__ == "__main__":
    sys.exit(main())
