"""The one door where librdkafka's errors become ours.

Each keeps the library's own as its cause. Codes:
https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka.h (``rd_kafka_resp_err_t``)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from incident_messaging.errors import (
    BackendUnavailable,
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
    PublishFailed,
    SubscribeFailed,
    Timeout,
)

_E = TypeVar("_E", bound=MessagingError)

DENIED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
UNKNOWN_TOPIC: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
#: The record may be stored or not; librdkafka does not say which.
_UNKNOWN_OUTCOME = frozenset(
    {
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TIMED_OUT,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
        KafkaError._TRANSPORT,
        KafkaError._GAPLESS_GUARANTEE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    }
)
#: What a later try of the same request will meet again. Everything else may pass: a broker that is
#: starting, electing or moving things answers in many ways.
_FINAL = DENIED | frozenset(
    {
        KafkaError._FATAL,
        KafkaError._INVALID_ARG,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError._NOT_IMPLEMENTED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError.INVALID_REQUEST,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.INVALID_REPLICATION_FACTOR,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.GROUP_MAX_SIZE_REACHED,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_EXCEPTION,
    }
)
#: Properties of files that a client is not made without, by the fields that they come from.
_FILES: Final = {
    "ssl.ca.location": "kafka.ssl_ca_file",
    "ssl.certificate.location": "kafka.ssl_cert_file",
    "ssl.key.location": "kafka.ssl_key_file",
}
#: TLS alerts by which a server refuses a client's certificate, or the lack of one (RFC 8446, section 6).
_CERTIFICATE_ALERT = re.compile(r"SSL alert number (4[2-8]|116)\b")


def of(exc: BaseException) -> KafkaError:
    """The library's error inside its exception."""
    inner = exc.args[0] if exc.args else None
    return inner if isinstance(inner, KafkaError) else KafkaError(KafkaError._FAIL, str(exc))


def passes(error: KafkaError) -> bool:
    """Whether the same request may succeed a little later."""
    return error.code() not in _FINAL


def caused(error: _E, by: KafkaError | BaseException | None) -> _E:
    """The error with the library's own as its cause, as ``raise ... from`` would leave it."""
    if by is not None:
        error.__cause__ = by if isinstance(by, BaseException) else KafkaException(by)
    return error


def not_created(servers: str, exc: BaseException) -> MessagingError:
    """A client that could not be made: no token to log in with, or a property that is not taken."""
    if of(exc).code() == KafkaError.SASL_AUTHENTICATION_FAILED:
        return no_connection(servers, exc)
    said = of(exc).str().strip()
    text = f"Kafka does not take the configuration: {_bad_file(said)}{said}"
    return caused(ConfigurationError(text, backend="kafka"), exc)


def _bad_file(said: str) -> str:
    """Which file it is, in words, where librdkafka quotes OpenSSL alone."""
    field = next((field for name, field in _FILES.items() if f"{name} failed" in said), None)
    if field is None:
        return ""
    if "key values mismatch" in said:
        return "kafka.ssl_key_file is not the key of kafka.ssl_cert_file: "
    if field == "kafka.ssl_key_file":
        return f"{field} holds no key (PEM), or kafka.ssl_key_password does not open it: "
    return f"{field} holds no certificate (PEM): "


def no_connection(servers: str, error: KafkaError | BaseException | None, found: str = "") -> ConnectionFailed:
    """No connection to any of the addresses; the kind is told by the last error.

    Args:
        servers: The addresses, for the text.
        error: What librdkafka said last.
        found: What is wrong with TLS, or that it is missing, where a look of our own has shown it (`diagnosis`).
    """
    kafka = of(error) if isinstance(error, BaseException) else error
    detail = kafka.str() if kafka is not None else ""
    code = kafka.code() if kafka is not None else KafkaError._TRANSPORT
    if code in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
        remedy = "check sasl_mechanism and credentials"
        if "current SASL state" in detail:
            remedy = "this listener takes no login: unset enable_sasl, or use the address of another listener"
        text, kind = f"Kafka login failed: {detail} ({servers}): {remedy}", "unauthorized"
    elif found or code == KafkaError._SSL or "SSL" in detail:
        why = f"{found}: {detail}" if found and "SSL" in detail else found or detail
        text, kind = f"Kafka TLS session failed: {why} ({servers}): {_tls_remedy(detail, found)}", "tls"
    else:
        text, kind = f"Kafka producer creation failed: broker not available ({servers})", "unreachable"
    return caused(ConnectionFailed(text, code=kind, backend="kafka"), error)


def _tls_remedy(detail: str, found: str) -> str:
    if _CERTIFICATE_ALERT.search(detail):
        return "the broker does not accept the client's certificate, or wants one: check ssl_cert_file and ssl_key_file"
    if "closed by peer" in detail:
        return "the listener may speak no TLS: check enable_ssl"
    return "check enable_ssl" if found and "SSL" not in detail else "check enable_ssl and ssl_ca_file"


def hung_up(servers: str) -> ConnectionFailed:
    """A server that takes connections, and ends them before a request is answered."""
    text = f"Kafka closed the connection without an answer ({servers}): it may want a login (enable_sasl)"
    return ConnectionFailed(text, code="unauthorized", backend="kafka")


def check_token(servers: str, token: Callable[[], object] | None) -> None:
    """Ask for a token before librdkafka does, which takes ten seconds to say that there is none.

    Raises:
        ConnectionFailed: There is none (``unauthorized``).
        ConfigurationError: What came is none.
    """
    if token is None:
        return
    try:
        checked_token(token())
    except ConfigurationError:
        raise
    except BaseException as exc:  # it is asked on a thread of its own, where sys.exit would end nothing else
        text = f"Kafka login failed: sasl_oauth_token raised {type(exc).__name__}: {exc} ({servers})"
        raise ConnectionFailed(text, code="unauthorized", backend="kafka") from exc


def no_token(servers: str) -> ConnectionFailed:
    """A source of tokens that takes longer than the call has."""
    text = f"Kafka login failed: sasl_oauth_token has not returned a token in time ({servers})"
    return ConnectionFailed(text, code="unauthorized", backend="kafka")


def checked_token(given: Any) -> tuple[str, float]:
    """What a source of tokens gave, if it is a token that can be used.

    Raises:
        ConfigurationError: It is not. What was given is not shown.
    """
    if not _is_token(given):
        del given  # a traceback may show a frame's names
        text = "kafka.sasl_oauth_token must return a token and the Unix time in seconds at which it expires, in future"
        raise ConfigurationError(text, backend="kafka")
    token, expires = given
    return token, float(expires)


def _is_token(given: Any) -> bool:
    try:
        token, expires = given
        return isinstance(token, str) and token != "" and bool(expires > time.time())
    except (TypeError, ValueError):
        return False


def publish(error: KafkaError, topic: str) -> MessagingError:
    """What became of a record that the broker or the library did not take."""
    code = error.code()
    said = error.str()
    failed: MessagingError
    if code in _UNKNOWN_OUTCOME:
        failed = Timeout(
            f"Kafka did not confirm the message for {topic} ({said}); it may be stored all the same",
            maybe_delivered=True,
            backend="kafka",
        )
    elif code == KafkaError._PURGE_QUEUE:
        failed = Timeout(f"the message for {topic} was not sent to Kafka in time", backend="kafka")
    elif code == KafkaError._QUEUE_FULL:
        failed = BackendUnavailable("Kafka's send queue is full", code="window_full", backend="kafka")
    elif code in UNKNOWN_TOPIC:
        failed = no_topic(topic)
    else:
        failed = _refused(code, said, topic)
    return caused(failed, error)


def no_offset(topic: str) -> Timeout:
    """A report of success that does not say where the record is.

    So librdkafka answers a broker's DUPLICATE_SEQUENCE_NUMBER, which may also mean that only a later record
    was stored (``docs/decisions/0009-one-request-in-flight.rst``).
    """
    return Timeout(
        f"Kafka did not say where it has stored the message for {topic}; it may not be stored",
        maybe_delivered=True,
        backend="kafka",
    )


def _refused(code: int, said: str, topic: str) -> PublishFailed:
    if code in _TOO_LARGE:
        return PublishFailed(
            f"Kafka refused the message for {topic} as too large ({said}): raise message.max.bytes of the broker "
            f"or max.message.bytes of the topic, or lower max_message_size",
            code="too_large",
            backend="kafka",
        )
    if code in DENIED:
        return PublishFailed(
            f"Kafka does not allow to publish to {topic} ({said}): the user needs the ACL Write",
            code="denied",
            backend="kafka",
        )
    return PublishFailed(f"Kafka refused the message for {topic}: {said}", code="rejected", backend="kafka")


def no_topic(topic: str) -> PublishFailed:
    """A publish to a topic that is not there, and may not be made."""
    return PublishFailed(
        f"Kafka has no topic {topic}: make it on the broker, or set kafka.create_topics and publish again",
        code="no_stream",
        backend="kafka",
    )


def not_made(topic: str, error: KafkaError) -> PublishFailed:
    """A topic that is missing and could not be made, or that the user is not shown."""
    text = f"Kafka has no topic {topic}, and making it failed: {error.str()}"
    if error.code() not in DENIED:
        return caused(PublishFailed(text, code="rejected", backend="kafka"), error)
    remedy = "the user needs the ACL Write on the topic, and Create where it is still to be made"
    text = f"Kafka shows the user no topic {topic} ({error.str()}): {remedy}"
    return caused(PublishFailed(text, code="denied", backend="kafka"), error)


def subscribe(error: KafkaError, what: str, group: str = "") -> SubscribeFailed:
    """A place that cannot be had for good; ``group`` is the name of the group, which Kafka does not say."""
    denied = error.code() in DENIED
    text = f"Kafka refused {what}: {error.str()}{_missing_right(error, group)}"
    return caused(SubscribeFailed(text, code="denied" if denied else "no_topic", backend="kafka"), error)


def _missing_right(error: KafkaError, group: str) -> str:
    if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
        return f": the user needs the ACL Read on the group {group} (for a broadcast, Describe)"
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        return ": the user needs the ACL Read on the topic (Write on that of the dead letters), Create to make it"
    return ": the user needs the ACL Read on topic and group" if error.code() in DENIED else ""


def consume(error: KafkaError, name: str) -> BackendUnavailable:
    """A consumer that cannot go on."""
    return caused(BackendUnavailable(f"Kafka ended the subscription {name}: {error.str()}", backend="kafka"), error)


def no_dead_letters(topic: str) -> SubscribeFailed:
    """The topic for dead letters is not there, and may not be made."""
    text = f"Kafka has no topic {topic} for dead letters: make it, set kafka.create_topics, or enable_dlq=False"
    return SubscribeFailed(text, code="no_topic", backend="kafka")
