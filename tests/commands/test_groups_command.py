"""The command ``incident-messaging groups`` on both real brokers, beside other programs' clients."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from groups_kit import PATIENCE, Foreign, Place, numbers
from nats.js.api import RetentionPolicy
from waiting import takes, until

from incident_messaging import ConsumeFailed, Delivery, MessagingService, SubscribeFailed, topics
from incident_messaging.groups import opened


@pytest.fixture
def place(broker_ways: tuple[str, dict[str, Any]], tmp_path: Path) -> Place:
    return Place(broker_ways, tmp_path)


@pytest.fixture
def on_nats(nats_server: Any, tmp_path: Path) -> Place:
    return Place(("nats", {"servers": [nats_server.url]}), tmp_path)


@pytest.fixture
def on_kafka(kafka_broker: Any, tmp_path: Path) -> Place:
    return Place(("kafka", {"bootstrap_servers": kafka_broker.bootstrap_servers}), tmp_path)


def read(service: MessagingService, topic: str, group: str, count: int, **options: Any) -> list[int]:
    """The numbers of so many messages, each of which is acknowledged."""
    found = service.consume(topic, group=group, timeout=PATIENCE, limit=count, **options)
    return [delivery.payload["n"] for delivery in found]


def test_list(place: Place) -> None:
    legacy = Foreign(place, f"{place.prefix}-legacy", ["orders.new"])
    with MessagingService(place.config) as service:
        service.publish_batch("orders.new", numbers(9), key="k")
        assert read(service, "orders.*", "audit", 2) == [0, 1]
        legacy.take(3)
        with service.subscribe("orders.new", group="pager"):
            lines = [line.split() for line in place.run("groups", "list").stdout.splitlines()]
            found = {each["group"]: each for each in place.objects("groups", "list")}
            (foreign,) = place.objects("lag", "--group", legacy.name)
    assert lines[0] == ["BROKER", "NAME", "GROUP", "TOPIC", "MEMBERS", "LAG"]
    many = {"nats": "some", "kafka": "1"}[place.backend]
    assert ["pager", "orders.new", many, "9"] in [line[2:] for line in lines]
    assert [place.backend, legacy.name, "(foreign)", f"{place.prefix}.orders.new"] in [line[:4] for line in lines]
    assert (found["audit"]["lag"], found["audit"]["topics"]) == (7, ["orders.*"])
    assert (found["pager"]["active"], found[None]["foreign"], found[None]["lag"]) == (True, True, 6)
    assert (foreign["foreign"], foreign["lag"], foreign["oldest"] is not None) == (True, 6, True)


def test_reset_means_what_a_start_means(place: Place) -> None:
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(6), key=lambda each: str(each["n"]))
        time.sleep(0.05)  # brokers' times are milliseconds; what lies between the two is the start
        between = datetime.now(UTC)
        time.sleep(0.05)
        service.publish_batch("orders", numbers(2, 6), key=lambda each: str(each["n"]))
        read(service, "orders", "moved", 8)
        service.publish_batch("orders", numbers(4, 8), key=lambda each: str(each["n"]))
        starts: list[tuple[Any, int, int]] = [("earliest", 0, 4), (between, 6, 0), ("latest", 14, 0)]
        for there, (start, begin, before) in enumerate(starts, 12):
            fresh = f"fresh-{there}"
            service.subscribe("orders", group=fresh, start=start).close()
            written = start if isinstance(start, str) else start.isoformat()
            (said,) = place.objects("groups", "reset", "moved", "orders", "--to", written, "--yes")
            assert (said["before"], said["after"], said["done"]) == (before, there - begin, True)
            assert said["skipped"] - said["again"] == before - said["after"]
            service.publish("orders", {"n": there}, key=str(there))
            wanted = list(range(begin, there + 1))
            assert sorted(read(service, "orders", "moved", len(wanted))) == wanted
            assert sorted(read(service, "orders", fresh, len(wanted))) == wanted


def test_reset_asks_shows_and_can_be_repeated(place: Place) -> None:
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(2), key="k")
        read(service, "orders", "g", 2)
        service.publish_batch("orders", numbers(3, 2), key="k")
        dry = place.run("groups", "reset", "g", "orders", "--to", "latest", "--dry-run")
        assert "  3 unread now, 0 from there on\n  3 that were not handled never will be\n" in dry.stdout
        assert dry.stdout.endswith("nothing was changed (--dry-run)\n")
        refused = place.run("groups", "reset", "g", "orders", "--to", "latest", answer="n\n")
        assert refused.exit_code == 1
        assert "put it there?" in refused.stderr
        assert place.objects("lag")[0]["lag"] == 3
        for _ in range(2):
            assert place.run("groups", "reset", "g", "orders", "--to", "earliest", answer="y\n").exit_code == 0
        (new,) = place.objects("groups", "reset", "other", "orders", "--to", "earliest", "--yes")
        assert (new["before"], new["after"]) == (None, 5)
        assert read(service, "orders", "g", 5) == read(service, "orders", "other", 5) == [0, 1, 2, 3, 4]


def test_nothing_is_moved_under_a_member(place: Place) -> None:
    with MessagingService(place.config) as service:
        service.publish("orders", {"n": 0}, key="k")
        assert read(service, "orders", "g", 1) == [0]
        with service.subscribe("orders", group="g") as member:
            for arguments in (
                ("reset", "g", "orders", "--to", "latest", "--dry-run"),
                ("adopt", member.name, "new", "orders", "--dry-run"),
            ):
                done = place.run("groups", *arguments)
                assert done.exit_code == 1
                assert "has members: " in done.stderr
        assert place.run("groups", "reset", "g", "orders", "--to", "latest", "--yes").exit_code == 0


def test_a_member_that_comes_while_it_is_asked_about(place: Place) -> None:
    with MessagingService(place.config) as service, opened(place.config) as groups:
        service.publish_batch("orders", numbers(2), key="k")
        service.subscribe("orders", group="g").close()
        move = groups.plan_reset("g", "orders", "latest")
        with service.subscribe("orders", group="g") as member:
            delivery = member.next(timeout=PATIENCE)
            assert delivery is not None
            delivery.ack(confirm=True)
            with pytest.raises(SubscribeFailed, match=r"has members: |has gone on meanwhile: "):
                groups.apply(move)
        with pytest.raises(SubscribeFailed, match="has gone on meanwhile: "):
            groups.apply(move)
        assert read(service, "orders", "g", 1) == [1]


def test_a_member_with_full_hands_is_heard_of(on_nats: Place) -> None:
    let_go = threading.Event()
    taken: list[Any] = []

    def slow(delivery: Delivery[Any]) -> None:
        taken.append(delivery)
        let_go.wait(PATIENCE)

    with MessagingService(on_nats.config) as service:
        service.publish_batch("orders", numbers(3), key="k")
        with service.subscribe("orders", group="g", callback=slow, prefetch=1):
            assert until(lambda: taken, PATIENCE)
            assert [each["active"] for each in on_nats.objects("groups", "list")] == [None]
            done = on_nats.run("groups", "reset", "g", "orders", "--to", "latest", "--yes")
            let_go.set()
    assert done.exit_code == 1
    assert "has members: it tells of messages that it works on" in done.stderr


def test_a_running_system_moves_without_a_gap(place: Place) -> None:
    """The old program stops in the middle, with messages in its hands, while others go on publishing."""
    legacy = Foreign(place, f"{place.prefix}-legacy", ["orders"])
    seen: list[int] = []
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(100), key=lambda each: str(each["n"]))
        handled = legacy.take(60, leave=[40, 44, 52])
        flow = threading.Thread(
            target=lambda: [service.publish("orders", each, key=str(each["n"])) for each in numbers(200, 100)]
        )
        flow.start()
        (said,) = place.objects("groups", "adopt", legacy.name, "new", "orders")
        with service.subscribe("orders", group="new", callback=lambda each: seen.append(each.payload["n"])):
            flow.join()
            assert until(lambda: len(set(seen) | set(handled)) == 300, PATIENCE)
    twice = Counter(seen) & Counter(handled)
    assert sorted({*seen, *handled}) == list(range(300))
    assert max(Counter(seen).values()) == 1
    if place.backend == "kafka":  # knows only offsets, and the old program has committed nothing behind a gap
        assert (len(handled), twice, said["again"]) == (40, Counter(), 0)
    else:  # the old one had acknowledged 17 behind the first that it had not: those come again, and are told
        assert (len(handled), twice) == (57, Counter([41, 42, 43, 45, 46, 47, 48, 49, 50, 51, *range(53, 60)]))
        assert 17 <= said["again"] <= 17 + 200
        assert "3 were handed out and not acknowledged" in said["remarks"][0]


def test_a_pattern_is_adopted(place: Place) -> None:
    read_by_it = {"nats": ["orders.*"], "kafka": ["orders.new", "orders.old", "bills"]}[place.backend]
    legacy = Foreign(place, f"{place.prefix}-legacy", read_by_it)
    with MessagingService(place.config) as service:
        service.publish_batch("orders.new", numbers(10), key="k")
        service.publish_batch("orders.old", numbers(10, 10), key="k")
        service.publish_batch("bills", numbers(10, 20), key="k")
        handled = legacy.take(12)
        (said,) = place.objects("groups", "adopt", legacy.name, "new", "orders.*")
        rest = read(service, "orders.*", "new", said["after"])
        (half,) = place.objects("groups", "adopt", said["name"], "half", "orders.new")
        assert "not taken over" in half["remarks"][-1]
    orders = [n for n in handled if n < 20]
    assert said["after"] == 20 - len(orders)
    assert sorted([*orders, *rest]) == list(range(20))


def test_a_group_id_that_is_shared_with_other_services(kafka_broker: Any, tmp_path: Path) -> None:
    place = Place(("kafka", {"bootstrap_servers": kafka_broker.bootstrap_servers}), tmp_path, exact_group_id=True)
    name = f"{place.prefix}-shared"
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(3), key="k")
        assert read(service, "orders", name, 1) == [0]
        (found,) = place.objects("lag")
        assert (found["name"], found["group"], found["topics"], found["lag"]) == (name, name, ["orders"], 2)
        done = place.run("groups", "adopt", name, name, "orders")
        assert "is the group's own name on the broker" in done.stderr
        assert place.run("groups", "reset", name, "orders", "--to", "earliest", "--yes").exit_code == 0
        assert read(service, "orders", name, 3) == [0, 1, 2]


def test_what_is_known_of_messages_that_killed_goes_along(on_kafka: Place) -> None:
    ours = '{"incident-messaging":{"until":3,"owner":"dead"}}'
    with MessagingService(on_kafka.config) as service:
        service.publish_batch("orders", numbers(3), key=lambda each: str(each["n"]))
    for written, kept in ((ours, ours), ("a stranger's own", "")):
        old = f"{on_kafka.prefix}-old"
        on_kafka.commit(old, "orders", {0: written, 1: written})
        (said,) = on_kafka.objects("groups", "adopt", old, f"new-{len(kept)}", "orders")
        assert on_kafka.written_by(said["name"]) == [kept, kept]


def test_a_partition_that_was_never_committed_is_told(on_kafka: Place) -> None:
    legacy = Foreign(on_kafka, f"{on_kafka.prefix}-legacy", ["a"])
    with MessagingService(on_kafka.config) as service:
        service.publish_batch("a", numbers(2), key="k")
        service.publish_batch("b", numbers(3, 2), key="k")
        legacy.take(1)
        (said,) = on_kafka.objects("groups", "adopt", legacy.name, "new", "*")
        assert any("has no place in" in remark and "its 3 messages are read" in remark for remark in said["remarks"])
        assert sorted(read(service, "*", "new", 4)) == [1, 2, 3, 4]


def test_adopt_is_refused(place: Place) -> None:
    legacy = Foreign(place, f"{place.prefix}-legacy", ["orders"])
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(4), key="k")
        service.publish("bills", {"n": 9}, key="k")
        legacy.take(2)
        service.subscribe("orders", group="there").close()
        held = legacy.member() if place.backend == "kafka" else nullcontext()
        with held as client:
            if client is not None:
                assert until(lambda: client.poll(0.1) is not None, PATIENCE)
                done = place.run("groups", "adopt", legacy.name, "new", "orders")
                assert "has members: 1 (rdkafka at /127.0.0.1; " in done.stderr
        said = {
            (legacy.name, "there", "orders"): "group there has a place on ",
            ("nobody", "new", "orders"): "nobody",
            ("a b.>", "new", "orders"): "a b.>",
            (legacy.name, "new", "bills"): f"no place on {place.prefix}.bills"
            if place.backend == "kafka"
            else f"does not read all of {place.prefix}.bills, but {place.prefix}.orders",
        }
        for arguments, words in said.items():
            done = place.run("groups", "adopt", *arguments)
            assert (done.exit_code, done.stdout) == (1, "")
            assert words in done.stderr
        dry = place.run("groups", "adopt", legacy.name, "new", "orders", "--dry-run")
        assert dry.stdout.endswith("nothing was changed (--dry-run)\n")
        assert {each["group"] for each in place.objects("groups", "list")} == {"there", None}


def test_a_stream_that_forgets_what_was_read_is_left_alone(on_nats: Place) -> None:
    on_nats.make_stream(on_nats.stream, ">", retention=RetentionPolicy.WORK_QUEUE)
    legacy = Foreign(on_nats, "legacy", ["orders"])
    with MessagingService(on_nats.config) as service:
        service.publish_batch("orders", numbers(4), key="k")
    legacy.take(2)
    for arguments in (("adopt", "legacy", "new", "orders"), ("reset", "legacy", "orders", "--to", "earliest", "--yes")):
        done = on_nats.run("groups", *arguments)
        assert done.exit_code == 1
        assert f"stream {on_nats.stream} keeps messages by workqueue" in done.stderr


def test_what_was_deleted_before_the_old_program_read_it_is_told(place: Place) -> None:
    if place.backend == "nats":
        place.make_stream(place.stream, ">", max_msgs=3)
    legacy = Foreign(place, f"{place.prefix}-legacy", ["orders"])
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(3), key="k")
        assert legacy.take(2) == [0, 1]
        service.publish_batch("orders", numbers(5, 3), key="k")
        place.delete_before("orders", 5)
        (said,) = place.objects("groups", "adopt", legacy.name, "new", "orders")
        words = {"nats": "up to 3 messages were deleted unread", "kafka": "no longer has offset 2 (5 to 8 are there)"}
        assert any(words[place.backend] in remark for remark in said["remarks"])
        if place.backend == "kafka":
            with pytest.raises(ConsumeFailed, match="3 messages may be missing"):
                read(service, "orders", "new", 3)
        assert read(service, "orders", "new", 3) == [5, 6, 7]


def test_a_stream_that_came_later_counts_from_its_beginning(on_nats: Place) -> None:
    on_nats.make_stream(f"{on_nats.stream}-a", "a.>", "dead-letter")
    with MessagingService(on_nats.config) as service:
        service.publish_batch("a.x", numbers(3), key="k")
        read(service, "*.x", "g", 1, prefetch=1)
        on_nats.make_stream(f"{on_nats.stream}-b", "b.>")
        service.publish_batch("b.x", numbers(4), key="k")
        assert on_nats.objects("lag")[0]["lag"] == 6
        (said,) = on_nats.objects("groups", "reset", "g", "*.x", "--to", "latest", "--yes")
        assert (said["before"], said["after"], said["skipped"]) == (6, 0, 6)
        (found,) = on_nats.objects("lag")
        assert (found["lag"], found["streams"]) == (0, [f"{on_nats.stream}-a", f"{on_nats.stream}-b"])


def test_what_a_user_on_nats_must_be_allowed(nats_server_factory: Any, tmp_path: Path) -> None:
    look = ["$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.LIST.*"]
    move = [
        *("$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.*.*"),
        *("$JS.API.CONSUMER.CREATE.*.>", "$JS.API.CONSUMER.DELETE.*.*"),
    ]
    users = [{"user": "all", "password": "pw"}]
    for user, allowed in {"none": ["nothing"], "look": look, "move": [*look, *move]}.items():
        permissions = {"publish": allowed, "subscribe": ["_INBOX.>", "$JS.ACK.>"]}
        users.append({"user": user, "password": "pw", "permissions": permissions})
    server = nats_server_factory(config=f"authorization: {json.dumps({'users': users})}")
    place = Place(("nats", {"servers": [server.url]}), tmp_path, user="all", password="pw")
    with MessagingService(place.config) as service:
        service.publish_batch("orders", numbers(4), key="k")
        read(service, "orders", "g", 2, prefetch=2)

    def run(user: str, command: str, *arguments: str) -> tuple[int, str]:
        done = place.run(command, "--set", f"nats.user={user}", *arguments)
        return done.exit_code, done.stdout or done.stderr

    code, said = run("none", "lag")
    assert code == 1
    assert "Error: looking for consumers: " in said
    assert "permissions violation" in said
    code, said = run("look", "lag")
    assert code == 0
    group, topic, broker, lag, _unsettled, oldest = said.splitlines()[1].split()
    assert (group, topic, broker, lag, oldest) == ("g", "orders", "nats", "2", "-")
    assert run("look", "groups", "reset", "g", "orders", "--to", "latest", "--yes")[0] == 1
    assert run("move", "groups", "reset", "g", "orders", "--to", "latest", "--yes")[0] == 0
    assert run("move", "groups", "adopt", topics.durable_name("g", f"{place.prefix}.orders"), "h", "orders")[0] == 0
    assert {each["lag"] for each in place.objects("lag")} == {0}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["reset", "g", "orders"], 2, "Missing option '--to'"),
        (["reset", "g", "orders", "--to", "yesterday"], 2, "'yesterday' is no time"),
        (["reset", " ", "orders", "--to", "latest"], 2, "group ' ' is not allowed"),
        (["reset", "g", "a..b", "--to", "latest"], 2, "topic 'a..b' is not allowed"),
        (["reset", "g", "nothing.there", "--to", "latest", "--yes"], 1, "nothing.there yet"),
        (["list", "--backend", "pigeon"], 2, "pigeon"),
    ],
)
def test_wrong_usage(place: Place, arguments: list[str], code: int, says: str) -> None:
    with takes(9.0):
        done = place.run("groups", *arguments)
    assert done.exit_code == code, done.output
    assert says in done.stderr
