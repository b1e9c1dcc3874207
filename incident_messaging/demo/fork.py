"""Run one forking program twice, with a client library alone and with this SDK, and count what reached the broker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import attrs
from rich import box
from rich.console import Console
from rich.table import Table

from incident_messaging.brokers import BrokerError
from incident_messaging.config import MessagingBackend, MessagingConfig
from incident_messaging.deadline import Deadline
from incident_messaging.demo.forked import CHILD, PARENT
from incident_messaging.demo.run import BROKERS, brokers
from incident_messaging.demo.view import View

__all__ = ["Outcome", "run_forked"]

SDK = "incident-messaging"
ALONE = {MessagingBackend.KAFKA: "confluent-kafka", MessagingBackend.NATS: "nats-py"}
SERVERS = {
    MessagingBackend.KAFKA: "INCIDENT_MESSAGING_KAFKA__BOOTSTRAP_SERVERS",
    MessagingBackend.NATS: "INCIDENT_MESSAGING_NATS__SERVERS",
}
#: The program's arguments for Python.
PROGRAM = ("-m", "incident_messaging.demo.forked")
#: Seconds that a program may take: its child waits up to 30 for what it published.
SECONDS = 60.0


@attrs.frozen
class Outcome:
    """What a run of the program came to: the calls in the child that raised nothing, and what the broker holds."""

    client: str
    backend: MessagingBackend
    accepted: int
    from_child: int
    from_parent: int

    @property
    def whole(self) -> bool:
        """Whether all arrived, once."""
        return (self.accepted, self.from_child, self.from_parent) == (CHILD, CHILD, PARENT)


def run_forked(backend: MessagingBackend, console: Console) -> bool:
    """Run the program on each broker of the choice, show the counts, and say whether all of the SDK's arrived.

    Raises:
        BrokerError: A broker could not be started, or a program failed.
    """
    view = View(console)
    with brokers(backend, view) as config:
        outcomes = []
        for broker in BROKERS[backend]:
            for client in (ALONE[broker], SDK):
                view.say(f"a process forks, its child publishes {CHILD} messages with {client} to {broker.value}")
                outcomes.append(_run(client, broker, config))
    console.print(_table(outcomes))
    return all(outcome.whole for outcome in outcomes if outcome.client == SDK)


def _run(client: str, broker: MessagingBackend, config: MessagingConfig) -> Outcome:
    server = config.kafka.bootstrap_servers if broker is MessagingBackend.KAFKA else config.nats.servers[0]
    make, read = (_make_kafka, _read_kafka) if broker is MessagingBackend.KAFKA else (_make_nats, _read_nats)
    topic = f"fork-{client}"
    make(server, topic)
    accepted = _accepted([client, server, topic], _environment(broker, server))
    stored = read(server, topic)
    child, parent = (sum(name in body for body in stored) for name in (b"child", b"parent"))
    return Outcome(client, broker, accepted, child, parent)


def _accepted(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program, and return how many of its child's calls raised nothing: 0 if the child did not get to say it.

    Raises:
        BrokerError: It did not end in time, or not well; the text is one line.
    """
    what = f"the program that publishes with {arguments[0]}"
    with subprocess.Popen(
        [sys.executable, *PROGRAM, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as program:
        try:
            said, errors = program.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise BrokerError(f"{what} did not end within {SECONDS:g} s") from error
        finally:
            _end(program)
    if program.returncode != 0:
        raise BrokerError(f"{what} ended with exit code {program.returncode}: {_last_line(errors)}")
    if said and not said.strip().isdecimal():
        raise BrokerError(f"{what} said {_last_line(said)!r}, not how many calls raised nothing")
    return int(said or 0)


def _end(program: subprocess.Popen[str]) -> None:
    """Kill it, and its forked child: that would hold the pipes, and so this process."""
    if program.returncode is None:  # else all that hold the pipes have ended, and the id may be another's
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


def _environment(broker: MessagingBackend, server: str) -> Mapping[str, str]:
    """What the SDK reads in the program, and nothing of the user's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INCIDENT_MESSAGING_")}
    return kept | {
        "INCIDENT_MESSAGING_BACKEND": broker.value,
        "INCIDENT_MESSAGING_TOPIC_PREFIX": "",
        SERVERS[broker]: server,
    }


# -- an independent look into the brokers, without the SDK ---------------------------------------------


def _make_kafka(server: str, topic: str) -> None:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": server})
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])[topic].result(30.0)


def _read_kafka(server: str, topic: str) -> list[bytes]:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": server, "group.id": "witness", "enable.auto.commit": False})
    try:
        first, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30.0)
        consumer.assign([TopicPartition(topic, 0, first)])
        deadline = Deadline.after(30.0)
        found: list[bytes] = []
        while len(found) < end - first and not deadline.over:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                found.append(message.value() or b"")
        return found
    finally:
        consumer.close()


def _make_nats(server: str, topic: str) -> None:
    async def make() -> None:
        import nats

        async with await nats.connect(server) as connection:
            await connection.jetstream().add_stream(name=topic, subjects=[topic])

    asyncio.run(make())


def _read_nats(server: str, topic: str) -> list[bytes]:
    async def read() -> list[bytes]:
        import nats

        async with await nats.connect(server) as connection:
            stream = connection.jetstream()
            last = (await stream.stream_info(topic)).state.last_seq
            return [(await stream.get_msg(topic, number)).data or b"" for number in range(1, last + 1)]

    return asyncio.run(read())


# -- what is shown ----------------------------------------------------------------------------------------


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("published with", "broker", box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in ("the child\npublished", "of these\narrived", "the parent\npublished", "of these\narrived"):
        table.add_column(name, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.client,
            outcome.backend.value,
            str(outcome.accepted),
            str(outcome.from_child),
            str(PARENT),
            str(outcome.from_parent),
            style="green" if outcome.whole else "red",
        )
    return table
