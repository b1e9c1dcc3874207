"""Envelopes to what a broker takes, and what a broker hands over to envelopes. Pure: no I/O, no clock
but the one that dates an envelope.

On the wire a message is UTF-8 JSON, ``{"metadata": {...}, "payload": {...}}``. The reader is lenient
where other writers on the same topics differ: it fills missing metadata, takes a timestamp in either
form, keeps unknown fields out of the way, and takes JSON without an envelope as the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin, overload

from incident_messaging import jsontext
from incident_messaging.envelope import (
    VERSION,
    MessageEnvelope,
    MessageMetadata,
    check_metadata,
    is_envelope,
    metadata_fields,
    new_message_id,
    read_metadata,
    unix_time,
    wire_time,
)
from incident_messaging.errors import ConfigurationError, SerializationError
from incident_messaging.forms import expected, shown
from incident_messaging.jsontext import JsonText
from incident_messaging.payloads import SKIPPED, Payloads, Skipped, reason, type_name
from incident_messaging.record import Received, Record

__all__ = ["SKIPPED", "Codec", "Decode", "Skipped", "from_json", "sent_envelope", "to_json"]

T = TypeVar("T")

#: What `Codec.decoder` makes.
Decode = Callable[[Received], MessageEnvelope[T] | Literal[Skipped.SKIPPED]]

MESSAGE_ID: Final = "x-message-id"
CORRELATION_ID: Final = "x-correlation-id"
CONTENT_TYPE: Final = "content-type"

_JSON: Final = "application/json"
#: How many headers nearly all messages have, and their bytes but for the id's.
_OWN = 2
_OWN_SIZE = len(MESSAGE_ID + CONTENT_TYPE + _JSON)

#: A timestamp that no message has.
_UNKNOWN: Final = -1

#: Names of headers that are ours, in lower case; the second are beginnings.
_OURS = frozenset({MESSAGE_ID, CORRELATION_ID, CONTENT_TYPE, "x-key", "traceparent"})
_OUR_PREFIXES = ("x-dlq-", "x-redrive-", "nats-")


@lru_cache(maxsize=1024)
def _is_ours(name: str) -> bool:
    lower = name.lower()
    return lower in _OURS or lower.startswith(_OUR_PREFIXES)


def _encodable(text: str) -> bool:
    """Whether a broker can take a text: foreign bytes (surrogateescape) yes, other lone surrogates no."""
    try:
        return text.isascii() or bool(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def _checked_text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not _encodable(value):
        raise ConfigurationError(f"{what} {shown(value)} is not allowed: text or None")
    return str.__str__(value)


@lru_cache(maxsize=1024)
def _is_name(name: str) -> bool:
    return bool(name) and name.isascii() and name.isprintable() and ":" not in name and " " not in name


def _check_header(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigurationError(f"header name {shown(name)} is not allowed: printable ASCII without blanks and colons")
    if _is_ours(name):
        raise ConfigurationError(
            f"header {name!r} is reserved: x-message-id, x-key, x-correlation-id, content-type, "
            "traceparent, x-dlq-*, x-redrive-* and Nats-* are the SDK's and the brokers' own"
        )
    if not isinstance(value, str) or not _encodable(value):
        raise ConfigurationError(f"header {name!r} has the value {shown(value)}: allowed is text")


class Codec:
    """Turns messages into records and what is received into envelopes; thread-safe.

    Args:
        source: Fills an envelope's source where it is empty.
        timestamp_format: ``unix`` or ``rfc3339``, on the way out.
        converter: The user's own hooks for payloads; copied.
        json: Which implementation of JSON; ``None`` is the fastest that is installed.
    """

    def __init__(
        self,
        *,
        source: str,
        timestamp_format: str = "unix",
        converter: Any = None,
        json: JsonText | None = None,
    ) -> None:
        self._source = source
        self._unix = timestamp_format == "unix"
        self._json = json or jsontext.select()
        self._payloads = Payloads(converter, self._json)

    def write(
        self,
        record: Record,
        message: Any,
        topic: str,
        key: str | None,
        headers: Mapping[str, str] | None,
        correlation_id: str | None,
    ) -> int:
        """Make a record, which may be blank, carry a message in its envelope; `sent_envelope` is the way back.

        Args:
            record: Gets all its fields.
            message: Anything that can be written, or a `MessageEnvelope` of it, whose metadata is
                kept; the envelope given is not changed.
            topic: The full name on the broker.
            key: What keeps its order.
            headers: The user's, for the broker.
            correlation_id: Goes into the metadata, also over what an envelope has there.

        Returns:
            The record's size.

        Raises:
            SerializationError: ``encode``: the message or its metadata cannot be written; the text
                says what and where, ``envelope`` is the envelope.
            ConfigurationError: The key, a header or the correlation id is not allowed.
        """
        if key is not None and not (type(key) is str and key.isascii()):
            key = _checked_text("key", key)
        if correlation_id is not None:
            correlation_id = _checked_text("correlation_id", correlation_id)
        if isinstance(message, MessageEnvelope):
            metadata, payload = self._kept(message, correlation_id), message.payload
        else:
            metadata, payload = self._made(correlation_id), message
        message_id, correlation_id = metadata["message_id"], metadata["correlation_id"]
        own = {MESSAGE_ID: message_id, CONTENT_TYPE: _JSON}
        if correlation_id is not None:
            own[CORRELATION_ID] = correlation_id
        if headers:
            _add_headers(own, headers)
        record.body = body = self._body(metadata, payload)
        record.topic, record.key, record.headers, record.raw_headers = topic, key, own, ()
        record.dedup_id = f"{message_id}:{topic}"
        if len(own) > _OWN or not message_id.isascii():
            return record.size
        if key is None:
            return len(body) + _OWN_SIZE + len(message_id)
        return len(body) + _OWN_SIZE + len(message_id) + len(key) if key.isascii() else record.size

    def check(self, key: str | None, headers: Mapping[str, str] | None) -> None:
        """Refuse what no message can be sent with.

        Raises:
            ConfigurationError: The key or a header is not allowed.
        """
        for name, value in (headers or {}).items():
            _check_header(name, value)
        if key is not None:
            _checked_text("key", key)

    def decoder(self, message_type: type[T]) -> Decode[T]:
        """What reads messages of a type; made once for each subscription.

        The decoder returns `SKIPPED` for a tombstone, and for a variant of incident event that the
        type does not ask for. It raises `SerializationError` (``decode``, with the bytes) for what
        cannot be read. For ``bytes`` it hands over the body as it came.

        Raises:
            ConfigurationError: Nothing can be read as this type.
        """
        payload_type = _payload_type(message_type)
        if payload_type is bytes:
            return cast("Decode[T]", self._decode_raw)
        read = self._payloads.reader(payload_type)
        loads = self._json.loads

        def decode(received: Received) -> MessageEnvelope[Any] | Literal[Skipped.SKIPPED]:
            if received.body is None:
                return SKIPPED
            document: Any = loads(received.body)
            enveloped = is_envelope(document)
            try:
                payload: object = read(document["payload"] if enveloped else document)
            except Exception as error:  # a user's hook may raise anything
                raise _unreadable(payload_type, error, received.body) from error
            if payload is SKIPPED:
                return SKIPPED
            return MessageEnvelope(_metadata(document["metadata"] if enveloped else {}, received), payload)

        return decode

    def _decode_raw(self, received: Received) -> MessageEnvelope[bytes] | Literal[Skipped.SKIPPED]:
        if received.body is None:
            return SKIPPED
        try:
            document = self._json.loads(received.body)
        except SerializationError:  # what the body is, is the reader's own business
            document = None
        fields = document["metadata"] if is_envelope(document) else {}
        return MessageEnvelope(_metadata(fields, received), received.body)

    def to_json(self, message: Any) -> bytes:
        """A message as the JSON of its payload; a `MessageEnvelope` as the whole of it.

        Raises:
            SerializationError: ``encode``.
        """
        if isinstance(message, MessageEnvelope):
            return self._body(self._kept(message, None), message.payload)
        try:
            return self._json.encode(self._payloads.plain(message))
        except Exception as error:  # a user's hook may raise anything
            raise jsontext.encode_error(error) from error

    def from_json(self, data: bytes, message_type: Any) -> Any:
        """The other way round: an envelope where ``message_type`` is a `MessageEnvelope`, else a message.

        Raises:
            SerializationError: ``decode``.
            ConfigurationError: Nothing can be read as this type.
        """
        payload_type = _payload_type(message_type)
        read = self._payloads.reader(payload_type)
        document = self._json.loads(data)
        wants_envelope = payload_type is not message_type
        try:
            if wants_envelope and not is_envelope(document):
                raise expected("an envelope", document)
            payload = read(document["payload"] if wants_envelope else document)
            if payload is SKIPPED:
                raise ValueError("it is another variant of incident event")
        except Exception as error:  # a user's hook may raise anything
            raise _unreadable(payload_type, error, data) from error
        if not wants_envelope:
            return payload
        made = MessageMetadata()
        return MessageEnvelope(read_metadata(document["metadata"], made.message_id, made.timestamp), payload)

    def _made(self, correlation_id: str | None) -> dict[str, Any]:
        """The metadata of a message that brings none, as on the wire; no object is made that nobody may ask for."""
        return {
            "message_id": new_message_id(),
            "correlation_id": correlation_id,
            "timestamp": wire_time(unix_time(), unix=self._unix),
            "source": self._source,
            "version": VERSION,
            "headers": {},
        }

    def _kept(self, envelope: MessageEnvelope[Any], correlation_id: str | None) -> dict[str, Any]:
        """The metadata of an envelope, as on the wire, with what it lacks."""
        try:
            check_metadata(envelope.metadata)
        except ValueError as error:
            raise SerializationError(str(error), code="encode", envelope=envelope) from error
        fields = metadata_fields(envelope.metadata, unix=self._unix)
        fields["source"] = fields["source"] or self._source
        if correlation_id is not None:
            fields["correlation_id"] = correlation_id
        return fields

    def _body(self, metadata: dict[str, Any], payload: Any) -> bytes:
        try:
            return self._json.encode({"metadata": metadata, "payload": self._payloads.plain(payload)})
        except Exception as error:  # a user's hook may raise anything
            envelope = MessageEnvelope(read_metadata(metadata, "", 0.0), payload)
            raise jsontext.encode_error(error).about(envelope=envelope) from error


def sent_envelope(message: Any, record: Record) -> MessageEnvelope[Any]:
    """The envelope in which a message was sent; publishing it again repeats the message under its id.

    Args:
        message: What `Codec.encode` was given: the same envelope comes back where nothing was filled in.
        record: What it made of it.
    """
    metadata = read_metadata(jsontext.loads(record.body)["metadata"], "", 0.0)
    if not isinstance(message, MessageEnvelope):
        return MessageEnvelope(metadata, message)
    return message if message.metadata == metadata else MessageEnvelope(metadata, message.payload)


def _add_headers(own: dict[str, str], headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        _check_header(name, value)
        own[name] = value


def _metadata(fields: Mapping[str, Any], received: Received) -> MessageMetadata:
    metadata = read_metadata(fields, "", _UNKNOWN)
    # The broker is asked only for what the writer has not said.
    if not metadata.message_id:
        metadata.message_id = _as_json_takes(received.fallback_id)
    if metadata.timestamp == _UNKNOWN:
        metadata.timestamp = int(received.timestamp)
    if metadata.correlation_id is None and (correlation_id := received.header(CORRELATION_ID)) is not None:
        metadata.correlation_id = _as_json_takes(correlation_id)
    return metadata


def _as_json_takes(text: str) -> str:
    r"""A header's text without foreign bytes: these as ``\udcff``, so that two ids which differ still do."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _payload_type(message_type: Any) -> Any:
    """The type of the payload that a message type asks for: of ``MessageEnvelope[X]`` it is X."""
    if message_type is MessageEnvelope:
        return Any
    return get_args(message_type)[0] if get_origin(message_type) is MessageEnvelope else message_type


def _unreadable(payload_type: Any, error: Exception, data: bytes) -> SerializationError:
    return SerializationError(f"not readable as {type_name(payload_type)}: {reason(error)}", code="decode", data=data)


@lru_cache(maxsize=1)
def _plain_codec() -> Codec:
    return Codec(source="")


def to_json(message: Any) -> str:
    """A message as JSON text; a `MessageEnvelope` whole, as it travels, anything else as its payload.

    Raises:
        SerializationError: ``encode``: it cannot be written; the text says what and where.
    """
    return _plain_codec().to_json(message).decode()


@overload
def from_json(data: str | bytes, message_type: type[T]) -> T: ...
@overload
def from_json(data: str | bytes, message_type: Any) -> Any: ...  # a union, dict[str, X]
def from_json(data: str | bytes, message_type: Any) -> Any:
    """What `to_json` has written: an envelope for ``MessageEnvelope[X]``, for any other type a message.

    Raises:
        SerializationError: ``decode``: it is not JSON, or not of this type; ``data`` has the bytes.
        ConfigurationError: Nothing can be read as this type.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    return _plain_codec().from_json(data, message_type)
