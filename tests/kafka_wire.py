"""Kafka's protocol by hand: records of any bytes, since the client library will not send what others may.

https://kafka.apache.org/protocol (Produce, version 3), https://kafka.apache.org/documentation/#messageformat.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import Self

Headers = Sequence[tuple[bytes, bytes | None]]


class KafkaWire:
    """A connection to a broker that leads the first partition of what is written to."""

    def __init__(self, servers: str) -> None:
        host, _, port = servers.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def produce(self, topic: str, records: Sequence[bytes]) -> tuple[int, int]:
        """Store a batch of `record` in the first partition; the broker's error, or 0, and the first one's offset."""
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
        return error, first

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            assert piece, "the broker hung up"
            data += piece
        return data


def record(number: int, body: bytes | None, key: bytes | None = None, headers: Headers = ()) -> bytes:
    """A record by its place in its batch."""
    fields = b"\0" + _varint(0) + _varint(number) + _nullable(key) + _nullable(body) + _headers(headers)
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
