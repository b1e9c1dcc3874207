"""What earlier versions promised still holds: their messages are read, their names are there (docs/versioning.rst)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from waiting import until
from wire_raw import PATIENCE, Message, Raw
from wire_record import PREFIX, PROMISES, SAMPLES, envelope, main, names, publish

from incident_messaging import IncidentEvent, MessagingConfig, MessagingService

VERSIONS = sorted(PROMISES.glob("*.json"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.stem)
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def promised(file: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return kept


@pytest.fixture
def of_broker(promised: dict[str, Any], raw: Raw) -> dict[str, Any]:
    kept: dict[str, Any] = promised["brokers"][raw.name]
    return kept


@pytest.fixture
def service(settings: dict[str, Any]) -> Any:
    with MessagingService(MessagingConfig.from_mapping({**settings, "topic_prefix": PREFIX})) as service:
        yield service


def missing(old: Any, new: Any, where: str = "") -> list[str]:
    """What was promised and is not there; what was added is nobody's loss."""
    if isinstance(old, Mapping):
        if not isinstance(new, Mapping):
            return [f"{where}: {new!r}"]
        return [each for name, value in old.items() for each in missing(value, new.get(name), f"{where}/{name}")]
    if isinstance(old, list) and old and isinstance(old[0], str):
        return sorted(f"{where}: {name}" for name in set(old) - set(new or ()))
    return [] if old == new else [f"{where}: {old!r} became {new!r}"]


def test_this_version_has_its_file() -> None:
    assert version("incident-messaging") in {path.stem for path in VERSIONS}, "python tests/release/wire_record.py"


def test_a_file_that_is_there_is_not_made_anew_by_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wire_record.PROMISES", tmp_path)
    kept = tmp_path / f"{version('incident-messaging')}.json"
    kept.write_text("kept")
    with pytest.raises(SystemExit, match=f"{kept.name} is there"):
        main([])
    assert kept.read_text() == "kept"


@pytest.mark.parametrize("kind", ["api", "errors", "options", "metrics"])
def test_names_are_still_there(promised: dict[str, Any], kind: str) -> None:
    assert promised[kind]
    assert missing(promised[kind], names()[kind]) == []


def test_messages_are_still_read(service: MessagingService, raw: Raw, file: Path, of_broker: dict[str, Any]) -> None:
    topic = f"read-{file.stem.replace('.', '-')}"
    kept = of_broker["messages"]
    with (
        service.subscribe(topic, group="plain") as plain,
        service.subscribe(topic, IncidentEvent, group="typed") as typed,
    ):
        for message in kept.values():
            raw.write(f"{PREFIX}.{topic}", Message(**message))
        for name in kept:
            delivery = plain.next(PATIENCE)
            assert delivery is not None
            assert delivery.metadata == envelope(name).metadata
            assert (delivery.key, delivery.headers["outside"]) == ("kéy", "öut")
            if name != "plain":
                event = typed.next(PATIENCE)
                assert event is not None
                assert event.payload == SAMPLES[name]


def test_what_is_written_is_what_was_written(
    service: MessagingService, raw: Raw, file: Path, of_broker: dict[str, Any]
) -> None:
    for name, kept in of_broker["messages"].items():
        topic = f"written-{file.stem.replace('.', '-')}.{name}"
        publish(service, name, topic)
        found = raw.last(f"{PREFIX}.{topic}")
        assert missing(json.loads(kept["body"]), json.loads(found.body)) == []
        expected = {name: text.replace(f"sample.{name}", topic) for name, text in kept["headers"].items()}
        expected = {
            each: text.replace(f"{PREFIX}.sample.{name}", f"{PREFIX}.{topic}") for each, text in expected.items()
        }
        assert missing(expected, found.headers) == []
        assert found.key == kept["key"]


def test_a_dead_letter_is_still_understood(service: MessagingService, raw: Raw, of_broker: dict[str, Any]) -> None:
    with service.subscribe("sample.plain", group="pager") as subscription:
        raw.write(f"{PREFIX}.dead-letter", Message(**of_broker["dead_letter"]))
        (letter,) = service.dead_letters.list()
        assert (letter.topic, letter.group, letter.attempts) == ("sample.plain", "pager", 1)
        assert (letter.exception_message, letter.redrive_count, letter.key) == ("recorded", 0, "kéy")
        assert letter.exception_type.endswith("Reject")
        assert letter.failed_at is not None
        service.dead_letters.redrive(topic="sample.plain")
        again = subscription.next(PATIENCE)
        assert again is not None
        assert again.payload == SAMPLES["plain"]
        assert again.metadata == envelope("plain").metadata
    assert until(lambda: not list(service.dead_letters.list()), PATIENCE)


def test_the_broker_knows_a_group_by_the_same_name(service: MessagingService, of_broker: dict[str, Any]) -> None:
    with service.subscribe("sample.plain", group="pager") as subscription:
        assert subscription.name == of_broker["place"]
