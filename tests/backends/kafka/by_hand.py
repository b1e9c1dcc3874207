"""One record written to a broker byte by byte, since the client library will not send what others may.

https://kafka.apache.org/protocol (Produce, version 3), https://kafka.apache.org/documentation/#messageformat.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

_PRODUCE, _VERSION = 0, 3
#: Castagnoli's polynomial, reflected.
_POLYNOMIAL = 0x82F63B78


def produce_by_hand(servers: str, topic: str, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Store one record in the topic's first partition."""
    name = topic.encode()
    batch = _batch(_record(body, headers))
    request = (
        struct.pack(">hhih", _PRODUCE, _VERSION, 1, -1)  # correlation id, no client id
        + struct.pack(">hhi", -1, 1, 10_000)  # no transaction, acknowledged by the leader
        + struct.pack(">ih", 1, len(name)) + name
        + struct.pack(">iii", 1, 0, len(batch)) + batch
    )  # fmt: skip
    host, _, port = servers.partition(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _read(connection, 4))
        answer = _read(connection, size)
    (error,) = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(name) + 4 + 4)
    assert error == 0, f"the broker refused the record: {error}"


def _record(body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    fields = b"\0" + _varint(0) + _varint(0) + _varint(-1) + _varint(len(body)) + body + _varint(len(headers))
    for name, value in headers:
        fields += _varint(len(name)) + name + _varint(len(value)) + value
    return _varint(len(fields)) + fields


def _batch(record: bytes) -> bytes:
    now = int(time.time() * 1000)
    checked = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + record
    return struct.pack(">qiibI", 0, len(checked) + 9, -1, 2, _crc32c(checked)) + checked


def _varint(number: int) -> bytes:
    rest, out = (number << 1) ^ (number >> 63), b""
    while rest > 0x7F:
        out += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return out + bytes([rest])


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, "the broker hung up"
        data += piece
    return data
