"""The command ``incident-messaging doctor`` for its tests: asked, and its remedies carried out."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs
import nats
from click.testing import CliRunner
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

from incident_messaging.commands import commands

PATIENCE = 40.0


@attrs.frozen
class Answer:
    """What the doctor said."""

    exit_code: int
    findings: list[dict[str, str]]

    def of(self, check: str, *, about: str = "") -> list[dict[str, str]]:
        """The findings of a check; of those, the ones that name something."""
        return [each for each in self.findings if each["check"] == check and about in each["what"]]

    def worst(self, check: str, *, about: str = "") -> dict[str, str]:
        """The worst of them."""
        order = ("not done", "ok", "warning", "broken")
        return max(self.of(check, about=about), key=lambda each: order.index(each["severity"]))

    @property
    def bad(self) -> set[tuple[str, str]]:
        """Checks with a warning or worse."""
        return {
            (each["check"], each["severity"]) for each in self.findings if each["severity"] in ("warning", "broken")
        }


def ask(settings: dict[str, Any], *options: str) -> Answer:
    """Have the doctor look, with settings by their names."""
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(commands, ["doctor", "--json", *sets, *options], catch_exceptions=False)
    said = json.loads(result.stdout)
    assert result.exit_code == said["exit_code"], result.output
    assert result.stderr == ""
    for finding in said["findings"]:
        if finding["severity"] in ("warning", "broken"):
            assert finding["why"], finding
            assert finding["remedy"], finding
    return Answer(said["exit_code"], said["findings"])


def commands_of(remedy: str, program: str) -> list[list[str]]:
    """The command lines of a program in a remedy."""
    return [shlex.split(each) for each in remedy.split("; ") if each.startswith(f"{program} ")]


def request_of(url: str, **login: str) -> Callable[..., dict[str, Any]]:
    """Requests to a server, past the SDK; one that is refused fails the test."""

    async def asked(subject: str, fields: dict[str, Any]) -> dict[str, Any]:
        client = await nats.connect(url, allow_reconnect=False, **login)
        try:
            answer = await client.request(subject, json.dumps(fields).encode() if fields else b"", timeout=20)
        finally:
            await client.close()
        found: dict[str, Any] = json.loads(answer.data)
        assert "error" not in found, (subject, found["error"])
        return found

    return lambda to, **fields: asyncio.run(asked(to, fields))


def api_of(url: str, **login: str) -> Callable[..., dict[str, Any]]:
    """The same of JetStream's API."""
    request = request_of(url, **login)
    return lambda question, **fields: request(f"$JS.API.{question}", **fields)


#: Options of ``nats stream``: the field, and how its value is read.
_STREAM: dict[str, tuple[str, Callable[[str], Any]]] = {
    "max-age": ("max_age", lambda text: _nanos(text)),
    "dupe-window": ("duplicate_window", lambda text: _nanos(text)),
    "max-msg-size": ("max_msg_size", int),
    "max-msgs": ("max_msgs", int),
    "max-bytes": ("max_bytes", int),
    "max-msgs-per-subject": ("max_msgs_per_subject", int),
    "discard": ("discard", str),
    "replicas": ("num_replicas", int),
    "storage": ("storage", str),
    "subjects": ("subjects", lambda text: text.split(",")),
    "ack": ("no_ack", lambda _flag: False),
}
#: The same of ``nats consumer``.
_CONSUMER: dict[str, tuple[str, Callable[[str], Any]]] = {
    "wait": ("ack_wait", lambda text: _nanos(text)),
    "max-deliver": ("max_deliver", int),
    "max-pending": ("max_ack_pending", int),
    "no-headers-only": ("headers_only", lambda _flag: False),
    "inactive-threshold": ("inactive_threshold", lambda text: _nanos(text)),
    "replicas": ("num_replicas", int),
}


def _nanos(text: str) -> int:
    found = re.fullmatch(r"([\d.]+)s", text)
    assert found is not None, text
    return int(float(found[1]) * 1_000_000_000)


def _options(words: list[str], known: dict[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word in ("-f", "--defaults"):
            continue
        field, read = known[name]
        fields[field] = read(value if equals or name in ("ack", "no-headers-only") else next(rest))
    return fields


def carry_out_on_nats(remedy: str, api: Callable[..., dict[str, Any]]) -> None:
    """Do what a remedy's ``nats`` commands do, by JetStream's API."""
    found = commands_of(remedy, "nats")
    assert found, remedy
    for _, kind, verb, stream, *words in found:
        match (kind, verb):
            case ("stream", "edit"):
                config = api(f"STREAM.INFO.{stream}")["config"]
                api(f"STREAM.UPDATE.{stream}", **config | _options(words, _STREAM))
            case ("stream", "add"):
                api(f"STREAM.CREATE.{stream}", name=stream, **_options(words, _STREAM))
            case ("consumer", "edit"):
                config = api(f"CONSUMER.INFO.{stream}.{words[0]}")["config"] | _options(words[1:], _CONSUMER)
                subject = f"CONSUMER.CREATE.{stream}.{words[0]}.{config['filter_subject']}"
                api(subject, stream_name=stream, action="update", config=config)
            case ("consumer", "resume"):
                api(f"CONSUMER.PAUSE.{stream}.{words[0]}")
            case ("consumer", "rm"):
                api(f"CONSUMER.DELETE.{stream}.{words[0]}")
            case _:
                raise AssertionError(f"not known here: {remedy}")


def carry_out_on_kafka(remedy: str, admin: AdminClient) -> None:
    """Do what a remedy's ``kafka-configs.sh`` and ``kafka-topics.sh`` do."""
    for program in ("kafka-configs.sh", "kafka-topics.sh"):
        for words in commands_of(remedy, program):
            given = dict(pairwise(words))
            if "--add-config" in words:
                name, _, value = given["--add-config"].partition("=")
                entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                resource = ConfigResource(
                    ConfigResource.Type.TOPIC, given["--entity-name"], incremental_configs=[entry]
                )
                admin.incremental_alter_configs([resource])[resource].result(PATIENCE)
            else:
                assert "--create" in words, remedy
                admin.create_topics([NewTopic(given["--topic"])])[given["--topic"]].result(PATIENCE)
