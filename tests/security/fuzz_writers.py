"""Writers that send whatever bytes they are given: both brokers' protocols by hand, since no client library does.

A writer stores messages of `fuzz_corpus` and says for each where it lies, if the broker took it.
NATS: https://docs.nats.io/reference/reference-protocols/nats-protocol; Kafka: `kafka_wire`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Self

from fuzz_corpus import Message
from kafka_wire import KafkaWire, record

#: Where a message lies (as ``str(Position)``); ``None`` where the broker did not take it.
Stored = str | None


class NatsWriter:
    """Publishes to JetStream and waits for each acknowledgement; subjects and header blocks may be anything."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20.0)
        self._file: BinaryIO = self._socket.makefile("rb")
        self._file.readline()  # INFO
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\nSUB _INBOX.fuzz.* 1\r\n')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def store(self, topic: str, messages: Iterable[Message]) -> list[Stored]:
        """Publish to ``<topic>.<level>``."""
        return self.publish([(topic.encode() + b"." + one.level, block_of(one), one.body or b"") for one in messages])

    def publish(self, records: Sequence[tuple[bytes, bytes, bytes]]) -> list[Stored]:
        """Publish subjects, header blocks and bodies."""
        answers: dict[int, Stored] = {}
        for number, (subject, block, body) in enumerate(records):
            head = b"HPUB %s _INBOX.fuzz.%d %d %d\r\n" % (subject, number, len(block), len(block) + len(body))
            self._socket.sendall(head + block + body + b"\r\n")
            while number - len(answers) >= 100:
                self._answer(answers)
        while len(answers) < len(records):
            self._answer(answers)
        return [answers[number] for number in range(len(records))]

    def _answer(self, answers: dict[int, Stored]) -> None:
        words = self._file.readline().split()
        if words and words[0] == b"PING":
            self._socket.sendall(b"PONG\r\n")
        elif words and words[0] in (b"MSG", b"HMSG"):
            data = self._file.read(int(words[-1]) + 2)
            answers[int(words[1].rpartition(b".")[2])] = _acknowledged(data if words[0] == b"MSG" else b"{}")
        else:
            raise AssertionError(f"the server says {words}")


def block_of(message: Message) -> bytes:
    """A header block; only what would end a line early is taken out, and a key is a header like others."""
    headers = [*message.headers, *([(b"x-key", message.key)] if message.key is not None else [])]
    lines = [(name + b": " + (value or b"")).replace(b"\r\n", b"\r") for name, value in headers]
    return b"NATS/1.0\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


def _acknowledged(body: bytes) -> Stored:
    answer: dict[str, Any] = json.loads(body)
    is_stored = "stream" in answer and not answer.get("error") and not answer.get("duplicate")
    return f"{answer['stream']}-{answer['seq']}" if is_stored else None


class KafkaWriter(KafkaWire):
    """Produces batches to one partition; null values and keys, header names and values may be any bytes."""

    def store(self, topic: str, messages: Iterable[Message]) -> list[Stored]:
        """Produce to partition 0 of ``<topic>.a``, which has to be there: Kafka takes no odd names."""
        stored: list[Stored] = []
        batch: list[bytes] = []
        for message in messages:
            one = _record(len(batch), message)
            if batch and sum(map(len, batch)) + len(one) > 500_000:
                stored += self._stored(f"{topic}.a", batch)
                batch, one = [], _record(0, message)
            batch.append(one)
        return stored + self._stored(f"{topic}.a", batch)

    def _stored(self, topic: str, records: Sequence[bytes]) -> list[Stored]:
        error, first = self.produce(topic, records)
        if error:
            return [None] * len(records)
        return [f"{topic}-0-{first + number}" for number in range(len(records))]


def _record(number: int, message: Message) -> bytes:
    return record(number, message.body, message.key, message.headers)
