"""The command ``incident-messaging doctor`` on a real NATS server whose streams and groups are wrong on purpose."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import attrs
import doctor_kit
import pytest
from doctor_kit import api_of, request_of
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from waiting import until

from incident_messaging import MessagingConfig, MessagingService
from incident_messaging.backends.nats import checkup
from incident_messaging.brokers.ports import free_port
from incident_messaging.topics import durable_name


@attrs.frozen
class Ward:
    """A stream of its own on the session's server."""

    url: str
    prefix: str
    api: Callable[..., dict[str, Any]]

    @property
    def stream(self) -> str:
        return self.prefix.upper()

    def make(self, **config: Any) -> None:
        usual = {
            "name": self.stream, "subjects": [f"{self.prefix}.>"], "storage": "file", "num_replicas": 1,
            "max_age": 604_800 * 10**9, "duplicate_window": 120 * 10**9,
        }  # fmt: skip
        self.api(f"STREAM.CREATE.{(usual | config)['name']}", **usual | config)

    def durable(self, **config: Any) -> None:
        """A group's durable, as the SDK would name it, and otherwise not as it makes it."""
        name, topic = durable_name("g", f"{self.prefix}.orders"), f"{self.prefix}.orders"
        usual = {
            "name": name, "durable_name": name, "filter_subject": topic, "ack_policy": "explicit",
            "ack_wait": 30 * 10**9, "max_deliver": -1, "max_ack_pending": -1, "deliver_policy": "all",
        }  # fmt: skip
        subject = f"CONSUMER.CREATE.{self.stream}.{name}.{topic}"
        self.api(subject, stream_name=self.stream, action="create", config=usual | config)

    def publish(self, count: int, topic: str = "orders") -> None:
        for _ in range(count):
            request_of(self.url)(f"{self.prefix}.{topic}")

    def ask(self, *options: str, **settings: Any) -> doctor_kit.Answer:
        base = {"nats.servers": self.url, "topic_prefix": self.prefix, "nats.stream_replicas": 1}
        return doctor_kit.ask(base | settings, *options)


@pytest.fixture
def ward(nats_server: Any) -> Iterator[Ward]:
    made = Ward(nats_server.url, f"w-{uuid.uuid4().hex[:8]}", api_of(nats_server.url))
    yield made
    for name in made.api("STREAM.NAMES", subject=f"{made.prefix}.>")["streams"] or ():
        made.api(f"STREAM.DELETE.{name}")


def test_all_is_well_and_nothing_changes(ward: Ward, nats_server: Any) -> None:
    """As the SDK itself makes things, no check finds anything, and the doctor leaves no trace."""
    settings = {"nats": {"servers": [ward.url], "stream_replicas": 1}, "topic_prefix": ward.prefix}
    with MessagingService(MessagingConfig.from_mapping(settings)) as service:
        service.subscribe("orders", group="g", callback=lambda _: None).close()
        service.publish("orders", {"n": 1})
        seen = service.subscribe(">", broadcast=True)
        before = _state(nats_server, ward)
        answer = ward.ask("--topic", "orders")
        assert answer.bad == set()
        assert answer.exit_code == 0
        assert [each["check"] for each in answer.findings if each["severity"] == "not done"] == ["handler time"]
        assert "1 unread" in answer.worst("lag")["what"]
        assert _state(nats_server, ward) == before
        assert seen.next(0.0) is None
    assert ward.ask().exit_code == 0


def _state(server: Any, ward: Ward) -> Any:
    """The stream with all on it, as the API tells, but for the time of the telling."""
    told = ward.api(f"STREAM.INFO.{ward.stream}"), ward.api(f"CONSUMER.LIST.{ward.stream}")["consumers"]
    names = ward.api("STREAM.NAMES")["streams"]
    consumers = [{**each, "ts": "", "num_waiting": 0} for each in told[1]]
    return {**told[0], "ts": ""}, sorted(consumers, key=lambda each: str(each["name"])), names


#: The name of the case; how the stream is made; the check, how bad, and a part of what it says.
STREAMS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "window below the time-out": ({"duplicate_window": 5 * 10**9}, "duplicate window", "broken", "5 s, and a publish"),
    "window beyond what is kept": (
        {"max_age": 60 * 10**9, "duplicate_window": 10**9}, "duplicate window", "broken", "the duplicate window is 1 s"
    ),
    "window below retries": ({"duplicate_window": 30 * 10**9}, "duplicate window", "warning", "come again within 45 s"),
    "age below retries": ({"max_age": 30 * 10**9, "duplicate_window": 30 * 10**9}, "retention", "broken", "take 45 s"),
    "age below what is configured": ({"max_age": 3600 * 10**9}, "retention", "warning", "configured is 7 days"),
    "no acknowledgements": ({"no_ack": True}, "keeping", "broken", "no_ack"),
    "few of a topic": ({"max_msgs_per_subject": 5}, "keeping", "broken", "max_msgs_per_subject is 5"),
    "drops the oldest": ({"max_msgs": 1000}, "keeping", "warning", "max_msgs with discard old"),
    "small messages": ({"max_msg_size": 1000}, "message size", "broken", "1,000 bytes, and max_message_size"),
    "full": ({"max_msgs": 2, "discard": "new"}, "room", "broken", "100% of its max_msgs"),
    "nearly full": ({"max_bytes": 52, "discard": "new"}, "room", "warning", "of its max_bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_that_is_made_otherwise_and_what_mends_it(ward: Ward, case: str) -> None:
    config, check, severity, says = STREAMS[case]
    ward.make(**config)
    if check == "room":
        ward.publish(config.get("max_msgs", 1))
    finding = ward.ask().worst(check)
    assert finding["severity"] == severity, finding
    assert says in finding["what"]
    doctor_kit.carry_out_on_nats(finding["remedy"], ward.api)
    assert ward.ask().worst(check)["severity"] == "ok"


@pytest.mark.parametrize(
    ("config", "severity", "says"),
    [
        ({"retention": "workqueue"}, "broken", "retention is workqueue"),
        ({"retention": "interest"}, "broken", "retention is interest"),
        ({"storage": "memory"}, "warning", "storage is memory"),
        ({"deny_delete": True}, "warning", "deny_delete"),
    ],
    ids=["workqueue", "interest", "memory", "deny_delete"],
)
def test_a_stream_that_has_to_be_made_anew(ward: Ward, config: dict[str, Any], severity: str, says: str) -> None:
    ward.make(**config)
    finding = ward.ask().worst("keeping")
    assert (finding["severity"], says in finding["what"]) == (severity, True)
    assert finding["remedy"].startswith(f"nats stream backup {ward.stream} ")


@pytest.mark.parametrize("wanted", [3, ""], ids=["3", "none"])
def test_too_few_copies(ward: Ward, wanted: Any) -> None:
    ward.make()
    answer = ward.ask(**{"nats.stream_replicas": wanted})
    assert answer.bad == {("replicas", "warning")}
    assert answer.exit_code == 1
    assert answer.worst("replicas")["remedy"].startswith("a cluster of 3 servers, then: nats stream edit ")


def test_a_stream_that_takes_no_more_consumers(ward: Ward) -> None:
    ward.make(max_consumers=1)
    assert ward.ask().worst("room", about="max_consumers is 1")["severity"] == "warning"
    ward.durable()
    finding = ward.ask().worst("room")
    assert (finding["severity"], "1 consumers, max_consumers is 1" in finding["what"]) == ("broken", True)


def test_a_topic_without_a_stream(ward: Ward) -> None:
    answer = ward.ask("--topic", "orders", **{"nats.create_streams": "false"})
    finding = answer.worst("stream", about="orders")
    assert (finding["severity"], answer.exit_code) == ("broken", 2)
    assert answer.worst("replicas")["severity"] == "not done"
    doctor_kit.carry_out_on_nats(finding["remedy"], ward.api)
    assert ward.ask("--topic", "orders", **{"nats.create_streams": "false"}).worst("stream")["severity"] == "ok"


def test_a_stream_of_the_name_that_keeps_other_topics(ward: Ward) -> None:
    ward.make(subjects=[f"{ward.prefix}x.>"])
    finding = ward.ask("--topic", "orders").worst("stream", about="orders")
    assert (finding["severity"], "does not keep" in finding["what"]) == ("broken", True)
    doctor_kit.carry_out_on_nats(finding["remedy"], ward.api)
    assert ward.ask("--topic", "orders").worst("stream")["severity"] == "ok"


def test_a_stream_that_is_in_the_way(ward: Ward) -> None:
    ward.make(name=f"{ward.stream}-OTHER", subjects=[f"{ward.prefix}.audit"])
    finding = ward.ask("--topic", "orders").worst("stream", about="orders")
    assert finding["severity"] == "broken"
    assert f"would overlap with {ward.stream}-OTHER" in finding["what"]


#: The name of the case; how the durable is made; how bad, and a part of what is said.
DURABLES: dict[str, tuple[dict[str, Any], str, str]] = {
    "short ack_wait": ({"ack_wait": 10**9}, "warning", "ack_wait is 1 s"),
    "another ack_wait": ({"ack_wait": 60 * 10**9}, "warning", "ack_wait is 60 s, configured is 30 s"),
    "drops after five": ({"max_deliver": 5}, "broken", "max_deliver is 5"),
    "few at a time": ({"max_ack_pending": 10}, "warning", "max_ack_pending is 10"),
    "no acknowledgements": ({"ack_policy": "none", "max_ack_pending": 0}, "broken", "no pull consumer with explicit"),
    "no bodies": ({"headers_only": True}, "broken", "headers_only"),
    "forgets its place": ({"inactive_threshold": 3600 * 10**9}, "broken", "inactive_threshold is 60 minutes"),
    "paused": ({"pause_until": "2999-01-01T00:00:00Z"}, "broken", "it is paused until 2999"),
    "in memory": ({"mem_storage": True}, "warning", "mem_storage"),
    "slow on purpose": ({"replay_policy": "original"}, "warning", "replay_policy is original"),
}


@pytest.mark.parametrize("case", DURABLES)
def test_a_durable_that_was_made_otherwise_and_what_mends_it(ward: Ward, case: str) -> None:
    config, severity, says = DURABLES[case]
    ward.make()
    ward.durable(**config)
    finding = ward.ask().worst("ack_wait")
    assert finding["severity"] == severity, finding
    assert says in finding["what"]
    doctor_kit.carry_out_on_nats(finding["remedy"], ward.api)
    assert ward.ask().worst("ack_wait")["severity"] == "ok"


def test_what_was_deleted_unread(ward: Ward) -> None:
    ward.make(max_msgs=2)
    ward.durable()
    ward.publish(5)
    finding = ward.ask().worst("lag")
    assert (finding["severity"], "up to 3 messages were deleted unread" in finding["what"]) == ("broken", True)


def test_what_will_be_deleted_unread(ward: Ward) -> None:
    ward.make(max_age=6 * 10**9, duplicate_window=10**9)  # as long again for the look that finds it
    ward.durable()
    ward.publish(1)
    assert "1 unread" in ward.ask().worst("lag")["what"]
    assert until(lambda: ward.ask().worst("lag")["severity"] == "warning")


@pytest.fixture
def metrics() -> Iterator[Callable[[str, float], str]]:
    """Serve what a worker would, whose handlers of a topic took so many seconds; returns the URL."""
    registry = CollectorRegistry()
    times = Histogram("messaging_handler_seconds", "Time in a callback", ("topic", "backend"), registry=registry)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(generate_latest(registry))

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def took(topic: str, seconds: float) -> str:
        times.labels(topic, "nats").observe(seconds)
        return f"http://127.0.0.1:{server.server_port}/metrics"

    yield took
    server.shutdown()
    thread.join()
    server.server_close()


def test_handlers_that_take_longer_than_ack_wait(ward: Ward, metrics: Callable[[str, float], str]) -> None:
    ward.make()
    ward.durable()
    metrics("invoices", 0.2)
    answer = ward.ask("--metrics-url", metrics("orders", 42.0))
    finding = answer.worst("handler time")
    assert finding["severity"] == "warning"
    assert "handlers of orders take up to 42 s, and ack_wait is 30 s" in finding["what"]
    assert "99 of 100 handlers of invoices end within 0.25 s" in answer.of("handler time", about="invoices")[0]["what"]
    doctor_kit.carry_out_on_nats(finding["remedy"], ward.api)
    assert ward.ask("--metrics-url", metrics("orders", 42.0)).worst("handler time")["severity"] == "ok"


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/metrics", "ftp://there", "http://[", "{nats}/metrics"])
def test_metrics_that_are_not_there(ward: Ward, nats_server: Any, url: str) -> None:
    ward.make()
    url = url.format(port=free_port(), nats=f"http://{nats_server.address}")
    finding = ward.ask("--metrics-url", url).worst("handler time")
    assert (finding["severity"], f"no metrics at {url}: " in finding["what"]) == ("warning", True)


@pytest.mark.parametrize(("seconds", "says"), [(90.0, "behind"), (-90.0, "ahead of")])
def test_clocks_that_differ(ward: Ward, monkeypatch: pytest.MonkeyPatch, seconds: float, says: str) -> None:
    """It is this machine's clock that is wrong, which for the doctor is the same."""
    ward.make()
    monkeypatch.setattr(checkup, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    finding = ward.ask().worst("clock")
    assert finding["severity"] == "warning"
    assert f"the clock of the NATS server is 90 s {says} that of this machine" in finding["what"]
