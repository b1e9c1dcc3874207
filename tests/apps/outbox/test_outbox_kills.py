"""Writers, relays and handlers killed or frozen between any two of their steps, on real databases and brokers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from uuid import uuid4

import psutil
import pytest
from outbox_kit import KILLED, PATIENCE, Lab, Writer, require_all_in_order
from waiting import until

from incident_messaging import MessageEnvelope, MessagingConfig, MessagingService

NewLab = Callable[..., Lab]

#: Each framework meets each database, and each broker two of these.
COMBINATIONS = [
    ("django", "sqlite", "nats"),
    ("django", "postgres", "kafka"),
    ("sqlalchemy", "sqlite", "kafka"),
    ("sqlalchemy", "postgres", "nats"),
]

everywhere = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
#: Steps of a relay with four messages: lease, read, four publishes, delete, read, release.
STEPS = 9

pytestmark = pytest.mark.slow


@everywhere
def test_only_what_was_committed_goes_out(new_lab: NewLab, combination: tuple[str, str, str]) -> None:
    lab = new_lab(*combination)
    writer = Writer(lab)
    for end in ("commit", "before", "error", "after", "commit"):
        writer.write(end=end)

    lab.do("relay")

    assert lab.arrived() == sorted(writer.written, key=lambda order: order[1])
    assert lab.waiting() == lab.parked() == 0


@everywhere
def test_a_relay_killed_between_any_two_steps(new_lab: NewLab, combination: tuple[str, str, str]) -> None:
    lab = new_lab(*combination)
    writer, step, code = Writer(lab), 0, KILLED
    while code == KILLED:
        if lab.waiting() == 0:
            writer.write()
        step += 1
        code = lab.run("relay", at=step)
    assert code == 0, lab.said()
    assert step > STEPS

    assert lab.waiting() == lab.parked() == 0
    require_all_in_order(lab.arrived(), writer.written)


@pytest.mark.parametrize(
    "combination", [("django", "postgres", "kafka"), ("sqlalchemy", "sqlite", "nats")], ids="-".join
)
def test_a_relay_frozen_past_its_lease_at_any_step(new_lab: NewLab, combination: tuple[str, str, str]) -> None:
    """Another takes over; when the first wakes up, both have been at the same messages."""
    lab = new_lab(*combination)
    writer, step, froze = Writer(lab), 0, True
    while froze:
        writer.write()
        step += 1
        relay = lab.start("relay", at=step, signal_number=signal.SIGSTOP)
        froze = until(lambda pid=relay: state(pid) in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE), PATIENCE)
        froze = froze and state(relay) == psutil.STATUS_STOPPED
        if froze:
            lab.do("relay")
            writer.write()
            os.kill(relay, signal.SIGCONT)
        assert lab.wait(relay) == 0, lab.said()
    assert step > STEPS

    require_all_in_order(lab.arrived(), writer.written)


def state(pid: int) -> str:
    return psutil.Process(pid).status()


@pytest.mark.parametrize(("framework", "database"), [("django", "sqlite"), ("sqlalchemy", "postgres")])
def test_a_handler_killed_before_and_after_its_commit_takes_effect_once(
    new_lab: NewLab, framework: str, database: str
) -> None:
    killed_handlers_take_effect_once(new_lab(framework, database, "nats"), ["inside", "after"])


def test_the_same_on_kafka(new_lab: NewLab) -> None:
    killed_handlers_take_effect_once(new_lab("django", "postgres", "kafka"), ["after"])  # a death costs its session


def killed_handlers_take_effect_once(lab: Lab, kills: list[str]) -> None:
    messages = [MessageEnvelope.new({"n": number}) for number in range(8)]
    with MessagingService(MessagingConfig.from_mapping(lab.messaging)) as service:
        service.publish_batch("orders", messages)
    for kill in kills:
        assert lab.run("consume", group="g", kill=kill, at=2) == KILLED, lab.said()

    healthy = lab.start("consume", group="g", fail_first=True)
    expected = sorted(message.metadata.message_id for message in messages)
    assert until(lambda: sorted(lab.effects()) == expected, PATIENCE), (lab.effects(), lab.said())
    assert lab.end(healthy) == 0
    again = lab.start("consume", group=f"g-{uuid4().hex[:6]}")  # a group that reads all of it once more
    with MessagingService(MessagingConfig.from_mapping(lab.messaging)) as service:
        last = service.publish("orders", {"n": "last"}).message_id
    assert until(lambda: last in lab.effects(), PATIENCE), lab.said()
    assert lab.end(again) == 0
    assert sorted(lab.effects()) == sorted([*expected, last])


@pytest.mark.parametrize(("framework", "database"), [("django", "postgres"), ("sqlalchemy", "sqlite")])
def test_two_processes_with_the_same_messages_at_once(new_lab: NewLab, framework: str, database: str) -> None:
    lab = new_lab(framework, database, "nats")
    consumers = [lab.start("consume", group=group) for group in ("first", "second", "third")]
    with MessagingService(MessagingConfig.from_mapping(lab.messaging)) as service:
        service.publish_batch("orders", [{"n": number} for number in range(40)])
        last = service.publish("orders", {"n": "last"}).message_id

    assert until(lambda: len(set(lab.effects())) == 41 and last in lab.effects(), PATIENCE), lab.said()
    assert [lab.end(pid) for pid in consumers] == [0, 0, 0]
    assert len(lab.effects()) == 41
