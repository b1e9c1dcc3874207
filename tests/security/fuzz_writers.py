"""Writers that send whatever bytes they are given: both brokers' protocols by hand, since no client library does.

A writer stores messages of `fuzz_corpus` and says for each where it lies, if the broker took it.
NATS: https://docs.nats.io/reference/reference-protocols/nats-protocol; Kafka: https://kafka.apache.org/protocol
(Produce, version 3), https://kafka.apache.org/documentation/#messageformat.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Self

from fuzz_corpus import Headers, Message

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


class KafkaWriter:
    """Produces batches to one partition; null values and keys, header names and values may be any bytes."""

    def __init__(self, servers: str) -> None:
        host, _, port = servers.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def store(self, topic: str, messages: Iterable[Message]) -> list[Stored]:
        """Produce to partition 0 of ``<topic>.a``, which has to be there: Kafka takes no odd names."""
        stored: list[Stored] = []
        batch: list[bytes] = []
        for message in messages:
            record = _record(len(batch), message)
            if batch and sum(map(len, batch)) + len(record) > 500_000:
                stored += self._produce(f"{topic}.a", batch)
                batch, record = [], _record(0, message)
            batch.append(record)
        return stored + self._produce(f"{topic}.a", batch)

    def _produce(self, topic: str, records: Sequence[bytes]) -> list[Stored]:
        name, batch = topic.encode(), _batch(records)
        request = (
            struct.pack(">hhih", 0, 3, 1, -1)  # Produce, version 3, correlation id, no client id
            + struct.pack(">hhi", -1, 1, 20_000)  # no transaction, acknowledged by the leader
            + struct.pack(">ih", 1, len(name)) + name
            + struct.pack(">iii", 1, 0, len(batch)) + batch
        )  # fmt: skip
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", self._read(4))
        error, first = struct.unpack_from(">hq", self._read(size), 4 + 4 + 2 + len(name) + 4 + 4)
        if error:
            return [None] * len(records)
        return [f"{topic}-0-{first + number}" for number in range(len(records))]

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            assert piece, "the broker hung up"
            data += piece
        return data


def _record(number: int, message: Message) -> bytes:
    fields = b"\0" + _varint(0) + _varint(number) + _nullable(message.key) + _nullable(message.body)
    fields += _headers(message.headers)
    return _varint(len(fields)) + fields


def _headers(headers: Headers) -> bytes:
    pairs = [_varint(len(name)) + name + _nullable(value) for name, value in headers]
    return _varint(len(pairs)) + b"".join(pairs)


def _nullable(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _batch(records: Sequence[bytes]) -> bytes:
    now = int(time.time() * 1000)
    last = len(records) - 1
    checked = struct.pack(">hiqqqhii", 0, last, now, now, -1, -1, -1, len(records)) + b"".join(records)
    return struct.pack(">qiibI", 0, len(checked) + 9, -1, 2, _crc32c(checked)) + checked


def _varint(number: int) -> bytes:
    rest, out = (number << 1) ^ (number >> 63), b""
    while rest > 0x7F:
        out += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return out + bytes([rest])


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(byte)
    return table


_TABLE = _table()


def _crc32c(data: bytes) -> int:
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
