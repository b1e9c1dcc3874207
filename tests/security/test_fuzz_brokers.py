"""Ten thousand messages that nobody should send, through each broker: every one is handled or a dead letter."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
from fuzz_corpus import KINDS, Message, corpus
from fuzz_reader import TYPES
from fuzz_writers import KafkaWriter, NatsWriter

from incident_messaging import Delivery, MessagingConfig, MessagingService

pytestmark = pytest.mark.slow

#: More than the ten thousand that are to be stored: some are refused.
SEED, COUNT, STORED = 7, 10_500, 10_000
#: What JetStream refuses by itself: conditions of a publish, and what a stream has to be made for.
REFUSED_BY_NATS = {"forged Nats headers"}
#: Megabytes that the reader may have more, at the most and at the end, than before the first of them.
MOST, LEFT = 60.0, 40.0
PATIENCE = 15.0


class Application:
    """`fuzz_reader` in its own process."""

    def __init__(self, settings: dict[str, Any], log: Path) -> None:
        self.log = log
        program = [sys.executable, str(Path(__file__).with_name("fuzz_reader.py")), json.dumps(settings), str(log)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        assert self._line() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(20.0) == 0
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def state(self, messages: int) -> dict[str, Any]:
        """What it says once so many messages are settled, or no more are."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{messages}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the application died: {self.log.read_text()[-2000:]}"
        return line


@attrs.frozen
class Fuzzed:
    """A broker with the corpus on it, and what an application has made of it.

    Attributes:
        settings: Those of the application's service.
        stored: What the broker took, by group and by where it lies.
        refused: What it did not take, by kind.
    """

    settings: dict[str, Any]
    application: Application
    stored: dict[str, dict[str, Message]]
    refused: Counter[str]
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def count(self) -> int:
        return sum(map(len, self.stored.values()))


def write(writer: NatsWriter | KafkaWriter, topic: str) -> tuple[dict[str, dict[str, Message]], Counter[str]]:
    """Put the corpus on the topics of both groups, all kinds on each; see `Fuzzed`."""
    messages, refused = list(corpus(SEED, COUNT)), Counter[str]()
    stored: dict[str, dict[str, Message]] = {}
    for number, group in enumerate(TYPES):
        mine = [message for at, message in enumerate(messages) if at // len(KINDS) % len(TYPES) == number]
        places = writer.store(f"{topic}.{group}", mine)
        stored[group] = {place: message for place, message in zip(places, mine, strict=True) if place is not None}
        refused.update(message.kind for place, message in zip(places, mine, strict=True) if place is None)
    return stored, refused


@pytest.fixture(scope="module", params=["nats", "kafka"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    settings: dict[str, Any] = {"backend": request.param, "topic_prefix": f"fuzz-{uuid.uuid4().hex[:8]}"}
    kind: type[NatsWriter | KafkaWriter]
    if request.param == "nats":
        server = request.getfixturevalue("nats_server")
        settings["nats"], kind, address = {"servers": [server.url]}, NatsWriter, server.address
    else:
        address = request.getfixturevalue("kafka_broker").bootstrap_servers
        settings["kafka"], kind = {"bootstrap_servers": address, "partitions": 1}, KafkaWriter
    with Application(settings, tmp_path_factory.mktemp("fuzz") / "log") as application:
        before = application.state(0)
        with kind(address) as writer:
            stored, refused = write(writer, f"{settings['topic_prefix']}.fuzz")
        after = application.state(sum(map(len, stored.values())))
        yield Fuzzed(settings, application, stored, refused, before, after)


@pytest.fixture
def service(fuzzed: Fuzzed) -> Iterator[MessagingService]:
    with MessagingService(MessagingConfig.from_mapping(fuzzed.settings)) as service:
        yield service


def original(letter: Delivery[bytes]) -> str:
    """Where the message of a dead letter lay."""
    said = letter.headers
    if "x-dlq-original-stream" in said:
        return f"{said['x-dlq-original-stream']}-{said['x-dlq-original-sequence']}"
    return "-".join(said[f"x-dlq-original-{part}"] for part in ("topic", "partition", "offset"))


def is_for_nobody(message: Message) -> bool:
    """Whether it is settled unseen: a tombstone, or redriven for another group."""
    groups = [value or b"" for name, value in message.headers if name == b"x-redrive-group"]
    return message.body is None or bool(groups)


def test_every_message_is_handled_or_a_dead_letter(fuzzed: Fuzzed, service: MessagingService) -> None:
    assert set(fuzzed.refused) <= REFUSED_BY_NATS
    assert fuzzed.count >= STORED
    count = int(fuzzed.after["dead_letters"])
    dead: dict[str, dict[str, Delivery[bytes]]] = {group: {} for group in TYPES}
    for letter in service.consume("dead-letter", bytes, group="undertaker", timeout=PATIENCE, limit=count):
        dead[letter.headers["x-dlq-group"]][original(letter)] = letter
    unseen = 0
    for group, stored in fuzzed.stored.items():
        handled = set(fuzzed.after["handled"][group]) & stored.keys()
        assert dead[group].keys() <= stored.keys()
        assert not handled & dead[group].keys()
        left = stored.keys() - handled - dead[group].keys()
        lost = Counter(stored[place].kind for place in left if not is_for_nobody(stored[place]))
        assert not lost, f"{group}: neither handled nor a dead letter: {lost}"
        assert all(letter.body == (stored[place].body or b"") for place, letter in dead[group].items())
        unseen += len(left)
    assert unseen == sum(fuzzed.after["skipped"].values())


def test_the_application_is_as_it_was(fuzzed: Fuzzed) -> None:
    after = fuzzed.after
    assert (after["lost threads"], after["errors"], after["health"]["ok"]) == ([], [], True)
    assert after["most"] - fuzzed.before["rss"] < MOST
    assert after["rss"] - fuzzed.before["rss"] < LEFT


def test_the_dead_letters_can_be_put_back_and_thrown_away(fuzzed: Fuzzed, service: MessagingService) -> None:
    letters = service.dead_letters
    report = letters.redrive(limit=300)
    assert (report.matched, report.failed) == (300, 0)
    assert 0 < report.done == 300 - sum(report.skipped.values())
    after = fuzzed.application.state(fuzzed.count + report.done)
    assert (after["lost threads"], after["errors"]) == ([], [])
    assert sum(after["skipped"].values()) == sum(fuzzed.after["skipped"].values())
    thrown = letters.purge(limit=300)
    assert (thrown.matched, thrown.done, thrown.failed) == (300, 300, 0)
    assert len(list(letters.list())) == after["dead_letters"] - report.done - thrown.done


def test_the_corpus_is_the_same_each_time() -> None:
    one, other = (list(corpus(SEED, 4 * len(KINDS))) for _ in range(2))
    assert one == other
    assert {message.kind for message in one} == set(KINDS)
