"""What is said to the server of messages, and the acknowledgements that it may have lost. On the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from incident_messaging.backends.nats.connection import Connection

_ACK = "+ACK"


class AckMemory:
    """The acknowledgements of the last moments, which may be lost: with the connection, or with the
    server, which writes them down about ten times a second.

    They are kept in two generations. A generation is dropped half a second after the server has read it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._young: dict[int, str] = {}
        self._old: dict[int, str] = {}
        self._read = True
        self._generation = 0

    def send(self, replies: Mapping[int, str]) -> None:
        """Acknowledge messages, by their sequence and where that is said, and remember it."""
        self._young.update(replies)
        self._connection.write(answers(_ACK, replies.values()))

    def repeat(self, sequence: int, reply: str) -> None:
        """Acknowledge again what has come again."""
        self._young[sequence] = reply
        self._connection.write(answers(_ACK, [reply]))

    def holds(self, sequence: int) -> bool:
        """Whether a message was acknowledged a moment ago."""
        return sequence in self._young or sequence in self._old

    @property
    def unsure(self) -> bool:
        """Whether the server may not have read all of them."""
        return bool(self._young) or not self._read

    def send_again(self) -> None:
        """After a reconnect."""
        replies = [*self._old.values(), *self._young.values()]
        self._connection.write(answers(_ACK, replies))

    def tick(self) -> None:
        """Let a generation pass, if the server has read it."""
        if self._read:
            self._old, self._young = self._young, {}
            self._read = not self._old
            self._generation += 1
        if not self._read:
            self._connection.confirm(partial(self._is_read, self._generation))

    def _is_read(self, generation: int, read: bool) -> None:
        if read and generation == self._generation:
            self._read = True


def answers(word: str, replies: Iterable[str]) -> bytes:
    """The commands that say a word of each message, built at once."""
    said = f"  {len(word)}\r\n{word}\r\n"
    return "".join([f"PUB {reply}{said}" for reply in replies]).encode()
