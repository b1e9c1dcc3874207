"""Keep what a version promises: ``tox exec -e tests -- python tests/release/wire_record.py``, once for each release.

A version that has its file gets it anew only with ``--again``, since ids and times in it are then others.

Writes ``promises/<version>.json``: messages as they are on both brokers, a dead letter, the brokers' names of groups,
and the names of the API, of options and of metrics. The tests hold every later version to all of these files.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "monitoring"))

import attrs
import queries
from waiting import until
from wire_raw import Raw, RawKafka, RawNats

import incident_messaging
from incident_messaging import (
    AlertCorrelated,
    IncidentAssigned,
    IncidentCommentAdded,
    IncidentCreated,
    IncidentEscalated,
    IncidentResolved,
    IncidentStateChanged,
    KafkaConfig,
    MessageEnvelope,
    MessageMetadata,
    MessagingConfig,
    MessagingError,
    MessagingService,
    NatsConfig,
    PlaybookCompleted,
    PlaybookStarted,
    Reject,
    RetryPolicy,
)
from incident_messaging.brokers import KafkaBroker, NatsServer

PROMISES = Path(__file__).parent / "promises"

#: The prefix of everything that was recorded: it is part of the broker's names.
PREFIX = "promised"

#: What is published, by the topic that it is kept under.
SAMPLES: dict[str, Any] = {
    "created": IncidentCreated("INC-1", "critical", "database", "primary is döwn"),
    "statechanged": IncidentStateChanged("INC-1", "open", "mitigated"),
    "assigned": IncidentAssigned("INC-1", "u-17"),
    "resolved": IncidentResolved("INC-1", 18_446_744_073_709_551_615),
    "escalated": IncidentEscalated("INC-1", 4_294_967_295),
    "commentadded": IncidentCommentAdded("INC-1", "C-1", "u-17"),
    "playbookstarted": PlaybookStarted("INC-1", "P-1"),
    "playbookcompleted": PlaybookCompleted("INC-1", "P-1", True),
    "alertcorrelated": AlertCorrelated("INC-1", "A-1", 0.25),
    "plain": {"n": 1, "nested": {"text": "€", "list": [None, True, 1.5]}},
}


def envelope(name: str) -> MessageEnvelope[Any]:
    """A sample with metadata that are the same each time."""
    metadata = MessageMetadata(f"id-{name}", "corr-1", 1_700_000_000, "recorder", headers={"inside": "ïn"})
    return MessageEnvelope(metadata, SAMPLES[name])


def publish(service: MessagingService, name: str, topic: str) -> None:
    """A sample as it was recorded."""
    service.publish(topic, envelope(name), key="kéy", headers={"outside": "öut"})


def give_up(delivery: Any) -> None:
    raise Reject("recorded")


def messages(raw: Raw, settings: dict[str, Any]) -> dict[str, Any]:
    """What is on a broker after each sample, and a dead letter; and what the broker calls a group's place."""
    with MessagingService(MessagingConfig.from_mapping(settings)) as service:
        for name in SAMPLES:
            publish(service, name, f"sample.{name}")
        kept = {name: raw.last(f"{PREFIX}.sample.{name}")._asdict() for name in SAMPLES}
        with service.subscribe(
            "sample.plain", callback=give_up, group="pager", retry=RetryPolicy(max_attempts=1)
        ) as one:
            place = one.name
            assert until(lambda: list(service.dead_letters.list()))
        letter = raw.last(f"{PREFIX}.dead-letter")._asdict()
        letter["headers"]["x-dlq-stacktrace"] = "Traceback (most recent call last): ..."  # without this machine's paths
        return {"messages": kept, "dead_letter": letter, "place": place}


def names() -> dict[str, Any]:
    """What a program, a file of configuration, or a dashboard says."""
    return {
        "api": sorted(incident_messaging.__all__),
        "errors": {kind.__name__: sorted(kind.codes) for kind in MessagingError.__subclasses__()},
        "options": {
            kind.__name__: sorted(field.name for field in attrs.fields(kind))
            for kind in (MessagingConfig, NatsConfig, KafkaConfig, RetryPolicy)
        },
        "metrics": {name: sorted(labels - queries.BY_PROMETHEUS) for name, labels in sorted(queries.series().items())},
    }


def main(arguments: list[str]) -> None:
    target = PROMISES / f"{version('incident-messaging')}.json"
    if target.exists() and arguments != ["--again"]:
        sys.exit(f"{target.name} is there; where that version is not released yet, --again makes it anew")
    with NatsServer() as server, KafkaBroker() as broker:
        raws = (RawNats(server.url), RawKafka(broker.bootstrap_servers))
        brokers = {raw.name: messages(raw, {**raw.settings, "topic_prefix": PREFIX}) for raw in raws}
    PROMISES.mkdir(exist_ok=True)
    target.write_text(json.dumps({**names(), "brokers": brokers}, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
