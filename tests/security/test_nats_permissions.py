"""Least privilege on NATS: the lists in the documentation suffice, hold nothing unused, and refuse the rest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from nats_secured import PATIENCE
from waiting import takes, until

from incident_messaging import ConnectionFailed, MessagingConfig, MessagingService, PublishFailed, SubscribeFailed
from incident_messaging.brokers import NatsServer

STREAM = "LLM-IM"


def lists() -> dict[str, str]:
    """The lists of the documentation, by the comment in their first lines, each as a user's entry has it."""
    page = (Path(__file__).parents[2] / "docs" / "nats_security.rst").read_text()
    shown = dict(re.findall(r"^   # (.+)\n((?:   .+\n)+)", page, re.MULTILINE))
    more = {"publisher": "publisher, creating", "consumer": "consumer and both, creating"}
    more["both"] = more["consumer"]
    for role, addition in more.items():
        shown[f"{role}, creating"] = shown[role].replace("publish: [\n", f"publish: [\n{shown[addition]}")
    del shown[more["both"]]
    return shown


ROLES = lists()


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """A server with one user for each list, and one who may do everything; its log has all that they ask for."""
    users = [f'{{ user: "{role}", password: "p", {rights} }}' for role, rights in ROLES.items()]
    users += ['{ user: "admin", password: "p" }']
    users += ['{ user: "deaf", password: "p", permissions { subscribe: [ "llm-im.>" ] } }']
    with NatsServer(config=f"trace: true\nauthorization {{ users = [ {', '.join(users)} ] }}") as started:
        yield started


def as_admin(server: NatsServer, work: Any) -> Any:
    async def connected() -> Any:
        client = await nats.connect(server.url, user="admin", password="p", allow_reconnect=False)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(connected())


async def remove_streams(stream: JetStreamContext) -> None:
    for name in (STREAM, "KV_incident-messaging"):
        try:
            await stream.delete_stream(name)
        except NotFoundError:
            pass


async def make_streams(stream: JetStreamContext) -> None:
    """What the documentation says that somebody has to make."""
    await stream.add_stream(name=STREAM, subjects=["llm-im.>"])
    await stream.create_key_value(bucket="incident-messaging", ttl=86_400)


@pytest.fixture
def service_of(server: NatsServer, nothing_left_behind: None) -> Iterator[Any]:
    """Services of users."""
    with ExitStack() as stack:

        def make(who: str, **nats: Any) -> MessagingService:
            login = {"servers": [server.url], "user": who, "password": "p", "ack_wait_ms": 1000}
            settings = {"backend": "nats", "retry": {"max_attempts": 1}, "nats": login | nats}
            service = MessagingService(MessagingConfig.from_mapping(settings))
            stack.callback(service.close, PATIENCE)
            return service

        yield make


def publishes(service: MessagingService) -> None:
    assert service.publish("orders", {"n": 0}, timeout=PATIENCE).results
    assert service.publish_batch("invoices", [{"n": n} for n in range(5)], timeout=PATIENCE).published == 5


def consumes(service: MessagingService, others: MessagingService, server: NatsServer) -> None:
    """A group that fails one message and one that gives back some, a broadcast, and messages whose process died."""
    handled: dict[str, set[int]] = {"g": set(), "died": set()}

    def handle(group: str, delivery: Any) -> None:
        handled[group].add(delivery.payload["n"])  # twice, if this process had no time to acknowledge
        if delivery.payload["n"] == 1:
            raise ValueError("no such order")

    service.subscribe("refunds", callback=partial(handle, "g"), group="g", timeout=PATIENCE)
    with service.subscribe("refunds", broadcast=True, timeout=PATIENCE) as broadcast:
        others.publish_batch("refunds", [{"n": n} for n in range(4)])
        broadcast.next(PATIENCE).ack()  # what is in somebody's hand holds back those whose process died
    assert until(lambda: handled["g"] == {0, 1, 2, 3}, PATIENCE)
    assert until(lambda: list(others.dead_letters.list(topic="refunds")), PATIENCE)
    one = service.consume_one("refunds", group="one", timeout=PATIENCE)  # the others are given back at the end
    assert one is not None
    one.ack()
    place = service.subscribe("refunds", group="died", timeout=PATIENCE)
    place.close()
    as_admin(server, lambda stream: steal(stream, place.name))
    again = service.subscribe("refunds", group="died", callback=partial(handle, "died"), timeout=PATIENCE)
    assert until(lambda: handled["died"] == {0, 1, 2, 3}, PATIENCE), handled
    again.close()


async def steal(stream: JetStreamContext, durable: str) -> None:
    """Fetch messages and die with them."""
    place = await stream.pull_subscribe_bind(durable, STREAM)
    await place.fetch(2, timeout=PATIENCE)


def asked_for(server: NatsServer, who: str, since: int) -> set[str]:
    """What a user has published to, as the server's trace has it."""
    said = f'"[^"]*/user:{who}" - <<- \\[H?PUB (\\S+)'
    return set(re.findall(said, server.log_file.read_text()[since:]))


def matches(pattern: str, subject: str) -> bool:
    levels = [{"*": r"[^.]+", ">": ".+"}.get(level, re.escape(level)) for level in pattern.split(".")]
    return re.fullmatch(r"\.".join(levels), subject) is not None


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("core", "dead letters")])
def test_a_list_suffices_and_all_of_it_is_used(
    server: NatsServer, service_of: Any, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind, _, creating = role.partition(", ")
    since = len(server.log_file.read_text())
    as_admin(server, remove_streams)
    if not creating:
        as_admin(server, make_streams)
    service, admin = service_of(role, create_streams=bool(creating)), service_of("admin")
    if kind in ("publisher", "both"):
        publishes(service)
    if kind in ("consumer", "both"):
        consumes(service, admin, server)
    service.close(PATIENCE)
    assert "permissions violation" not in caplog.text
    allowed = re.search(r"publish: \[(.*?)\]", ROLES[role], re.DOTALL)
    assert allowed is not None
    patterns = re.findall(r'"(.+?)"', allowed[1])

    def unused() -> list[str]:
        asked = asked_for(server, role, since)
        return [each for each in patterns if not any(matches(each, one) for one in asked)]

    assert until(lambda: not unused(), PATIENCE), (unused(), asked_for(server, role, since))


def test_dead_letters_are_looked_after(server: NatsServer, service_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    as_admin(server, remove_streams)
    admin = service_of("admin")

    def refuse(delivery: Any) -> None:
        raise ValueError("no such order")

    with admin.subscribe("orders", callback=refuse, group="g", timeout=PATIENCE):
        admin.publish_batch("orders", [{"n": n} for n in range(2)])
        assert until(lambda: len(list(admin.dead_letters.list())) == 2, PATIENCE)
    service = service_of("dead letters", create_streams=False)
    assert len(list(service.dead_letters.list())) == 2
    assert service.dead_letters.redrive(limit=1).done == 1
    assert service.dead_letters.purge().done == 1
    assert "permissions violation" not in caplog.text


def test_core_delivery(server: NatsServer, service_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    service = service_of("core", delivery="core")
    place = service.subscribe("core.orders", timeout=PATIENCE)
    service.publish("core.orders", {"n": 1}, timeout=PATIENCE)
    assert place.next(PATIENCE).payload == {"n": 1}
    assert "permissions violation" not in caplog.text


def test_what_is_not_in_the_list_is_refused_by_name(server: NatsServer, service_of: Any) -> None:
    as_admin(server, remove_streams)
    as_admin(server, make_streams)
    with pytest.raises(SubscribeFailed, match=rf"(?i)\$js\.api\.stream\.info\.{STREAM}") as subscribing:
        service_of("publisher", create_streams=False).subscribe("orders", timeout=PATIENCE)
    with pytest.raises(PublishFailed, match=r"llm-im\.orders") as publishing:
        service_of("consumer", create_streams=False).publish("orders", {"n": 1}, timeout=PATIENCE)
    assert (subscribing.value.code, publishing.value.code) == ("denied", "denied")


def test_a_stream_that_the_list_does_not_allow_to_make(server: NatsServer, service_of: Any) -> None:
    as_admin(server, remove_streams)
    with pytest.raises(PublishFailed, match=rf"(?i)permissions violation.*stream\.create\.{STREAM}") as caught:
        service_of("publisher").publish("orders", {"n": 1}, timeout=PATIENCE)
    assert caught.value.code == "no_stream"


@pytest.mark.parametrize("call", ["publish", "subscribe", "connect"])
def test_a_user_who_may_not_hear_the_answers_is_told_at_once(server: NatsServer, service_of: Any, call: str) -> None:
    service = service_of("deaf")
    calls = {
        "publish": lambda: service.publish("orders", {"n": 1}, timeout=PATIENCE),
        "subscribe": lambda: service.subscribe("orders", timeout=PATIENCE),
        "connect": lambda: service.connect(PATIENCE),
    }
    with (
        takes(at_most=PATIENCE / 2),
        pytest.raises(ConnectionFailed, match=r"no right to subscribe to _INBOX\.") as caught,
    ):
        calls[call]()
    assert caught.value.code == "unauthorized"
