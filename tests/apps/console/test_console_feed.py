"""The console's stream: what a page is told, and what it costs."""

from __future__ import annotations

import http.client
import threading
import time
import uuid
from contextlib import ExitStack, closing, contextmanager

import pytest
from console_kit import events, feed, feed_of, following, ids, service_of
from waiting import until
from werkzeug.serving import make_server

from incident_messaging import IncidentCreated, MessageEnvelope, MessagingConfig

PAGES = 200


def create(app, *numbers):
    for number in numbers:
        service_of(app).publish_incident_created(f"INC-{number}", "low", "network", "a title")


def test_a_new_page_is_told_everything_then_what_happens(app):
    create(app, 1, 2)

    with closing(feed_of(app).stream(None)) as page:
        assert ids(following(page, "snapshot")[1]) == {"INC-1", "INC-2"}
        create(app, 3)
        assert ids(following(page, "incidents")[1]) == {"INC-3"}


def test_a_page_that_comes_again_is_told_what_it_has_missed(app):
    create(app, 1, 2)
    with closing(feed_of(app).stream(None)) as page:
        read, _ = following(page, "snapshot")
    create(app, 3, 4)
    service_of(app).publish_incident_resolved("INC-1", 60)
    with closing(feed_of(app).stream(None)) as other:
        assert until(lambda: {i.incident_id for i in feed_of(app).incidents() if i.is_resolved} == {"INC-1"})
        assert ids(following(other, "snapshot")[1]) == {"INC-1", "INC-2", "INC-3", "INC-4"}

    with closing(feed_of(app).stream(read)) as page:
        assert ids(following(page, "incidents")[1]) == {"INC-1", "INC-3", "INC-4"}


def test_another_process_or_a_restarted_one_knows_how_far_a_page_was(start, config):
    app = start(config)
    create(app, 1)
    with closing(feed_of(app).stream(None)) as page:
        read, _ = following(page, "snapshot")
    create(app, 2)

    other = start(config)
    with closing(feed_of(other).stream(read)) as page:
        assert ids(following(page, "incidents")[1]) == {"INC-2"}


def test_a_page_with_an_unknown_id_is_told_everything(app):
    create(app, 1)
    with closing(feed_of(app).stream("console-of-old/0:17:12345678")) as page:
        assert ids(following(page, "snapshot")[1]) == {"INC-1"}


def test_an_id_that_would_be_too_long_to_ask_with_is_not_given(app, monkeypatch):
    monkeypatch.setattr(feed, "LONGEST_ID", 3)  # as with many partitions
    create(app, 1)

    with closing(feed_of(app).stream(None)) as page:
        read, snapshot = following(page, "snapshot")
        assert (read, ids(snapshot)) == (None, {"INC-1"})
        create(app, 2)
        read, changed = following(page, "incidents")
        assert (read, ids(changed)) == (None, {"INC-2"})


@pytest.fixture
def noise(app):
    """A writer whose clock is an hour behind, and who never pauses."""
    over = threading.Event()

    def write():
        while not over.wait(0.05):
            envelope = MessageEnvelope.new(IncidentCreated("INC-OLD", "low", "network", "a title"))
            envelope.metadata.timestamp = int(time.time()) - 3600
            service_of(app).publish("incidents.created", envelope, key="INC-OLD")

    writer = threading.Thread(target=write)
    writer.start()
    yield
    over.set()
    writer.join()


@pytest.mark.usefixtures("noise")
def test_the_history_is_shown_though_it_seems_not_to_end(app, client, monkeypatch):
    monkeypatch.setattr(feed, "POLL_SECS", 3.0)  # so that a busy machine makes no pause
    monkeypatch.setattr(feed, "HISTORY_SECS", 0.5)
    monkeypatch.setattr(feed, "READY_SECS", 30.0)

    assert ids(client.get("/api/incidents").json["incidents"]) == {"INC-OLD"}


def test_a_page_that_does_not_read_is_let_go_and_delays_nobody(app, monkeypatch):
    with closing(feed_of(app).stream(None)) as slow, closing(feed_of(app).stream(None)) as page:
        read, _ = following(slow, "snapshot")
        following(page, "snapshot")
        for number in range(150):
            create(app, number)
            assert ids(following(page, "incidents")[1]) == {f"INC-{number}"}

        assert len(list(events(slow))) <= 1  # it has ended; one was in its hands
    with closing(feed_of(app).stream(read)) as again:
        assert len(following(again, "incidents")[1]) == 150


def test_a_page_that_left_costs_nothing(app):
    with closing(feed_of(app).stream(None)) as page:
        following(page, "snapshot")
        assert len(feed_of(app)._pages) == 1
    assert feed_of(app)._pages == []


@contextmanager
def served(app):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def open_page(port):
    """An open page's stream, line by line."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/api/events")
        with connection.getresponse() as answer:
            yield answer
    finally:
        connection.close()


def read_until(answer, text):
    return any(text in line.decode() for line in answer)


def test_a_browser_that_takes_nothing_is_let_go(app):
    big = "x" * 100_000  # soon more than sockets hold
    with served(app) as port, open_page(port) as stuck, open_page(port) as page:
        assert read_until(stuck, "snapshot")
        assert read_until(page, "snapshot")
        for number in range(200):
            service_of(app).publish_incident_created(f"INC-{number}", "low", "network", big)
            assert read_until(page, f'"INC-{number}"')

        assert until(lambda: len(feed_of(app)._pages) == 1)
        feed_of(app).close()


@pytest.fixture
def nats_config(nats_server):
    return MessagingConfig(backend="nats", nats={"servers": [nats_server.url]}, topic_prefix=f"p{uuid.uuid4().hex[:8]}")


@pytest.fixture
def kafka_config(kafka_broker):
    servers = {"bootstrap_servers": kafka_broker.bootstrap_servers}
    return MessagingConfig(backend="kafka", kafka=servers, topic_prefix=f"p{uuid.uuid4().hex[:8]}")


def consumers_on_nats(server, prefix):
    accounts = server.monitor("/jsz?consumers=true&streams=true")["account_details"]
    streams = [stream for account in accounts for stream in account["stream_detail"]]
    return [
        consumer for stream in streams if stream["name"] == prefix.upper() for consumer in stream["consumer_detail"]
    ]


def consumers_on_kafka():
    """A consumer is polled by one thread of its own, named after it."""
    names = [thread.name for thread in threading.enumerate()]
    others = ("reports", "topics")
    consumers = [name for name in names if name.startswith("incident-messaging-kafka-")]
    return [name for name in consumers if name.rpartition("-")[2] not in others]


def see_one_incident_on_many_pages(app, consumers):
    create(app, 1)
    with served(app) as port, ExitStack() as stack:
        pages = [stack.enter_context(open_page(port)) for _ in range(PAGES)]
        assert all(read_until(page, "INC-1") for page in pages)
        assert len(feed_of(app)._pages) == PAGES

        create(app, 2)

        assert all(read_until(page, "INC-2") for page in pages)
        assert len(consumers()) == 1
        feed_of(app).close()  # ends the streams
        assert until(lambda: feed_of(app)._pages == [])


def test_many_open_pages_cost_nats_one_consumer(start, nats_server, nats_config):
    app = start(nats_config)
    see_one_incident_on_many_pages(app, lambda: consumers_on_nats(nats_server, nats_config.topic_prefix))


def test_many_open_pages_cost_kafka_one_consumer(start, kafka_config):
    app = start(kafka_config)
    see_one_incident_on_many_pages(app, consumers_on_kafka)
