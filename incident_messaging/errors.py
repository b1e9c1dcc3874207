"""The errors a user can meet, and the codes that tell them apart.

::

    MessagingError
    +-- ConnectionFailed     (also ConnectionError)  unreachable unauthorized tls
    +-- PublishFailed                                too_large denied no_stream stream_full rejected batch
    +-- SubscribeFailed                              denied overlap no_topic
    +-- ConsumeFailed                                lost_place slow_reader undecodable breaker
    +-- Timeout              (also TimeoutError)     timeout
    +-- SerializationError                           encode decode
    +-- BackendUnavailable                           disabled closed window_full forked loop_thread down
    +-- ConfigurationError   (also ValueError)       invalid

The client libraries' own exceptions are translated in the backends, and only there, always
with ``raise ... from``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

#: Codes after which the same call may succeed without a change by the user.
_RETRYABLE = frozenset({"unreachable", "stream_full", "timeout", "window_full", "down", "slow_reader"})


class MessagingError(Exception):
    """The root of every error that this package raises.

    Pickles and copies whole: every attribute travels.

    Attributes:
        code: Which of the class's cases it is, one of ``codes``.
        retryable: Whether repeating the same call can help.
        backend: The broker's short name (``nats``, ``kafka``, ``memory``), if one is to blame.
        topic: The topic without prefix, if one is concerned.
        envelope: The message's envelope as it was sent; publishing it again repeats the message
            under the same id.
        results: The outcome per broker, where a publish went to several.
    """

    codes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        backend: str | None = None,
        topic: str | None = None,
        envelope: Any = None,
        results: Mapping[Any, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or (self.codes[0] if self.codes else "")
        self.backend = backend
        self.topic = topic
        self.envelope = envelope
        self.results: Mapping[Any, Any] = results if results is not None else {}

    @property
    def retryable(self) -> bool:
        """Whether repeating the same call, unchanged, can help."""
        return self.code in _RETRYABLE

    def about(self, *, topic: str | None = None, envelope: Any = None) -> Self:
        """Fill in what the place that raised did not know, and return the error itself.

        What is there already stays.
        """
        self.topic = self.topic if self.topic is not None else topic
        self.envelope = self.envelope if self.envelope is not None else envelope
        return self


class ConnectionFailed(MessagingError, ConnectionError):
    """No connection to a broker: unreachable, not let in, or no TLS session."""

    codes = ("unreachable", "unauthorized", "tls")


class PublishFailed(MessagingError):
    """The broker refused a message, or some of a batch failed.

    Attributes:
        result: The ``BatchResult`` of a ``publish_batch``, else ``None``.
    """

    codes = ("rejected", "too_large", "denied", "no_stream", "stream_full", "batch")

    def __init__(self, message: str, *, result: Any = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.result = result


class SubscribeFailed(MessagingError):
    """The place a subscription asks for could not be had."""

    codes = ("no_topic", "denied", "overlap")


class ConsumeFailed(MessagingError):
    """A subscription ended by itself."""

    codes = ("lost_place", "slow_reader", "undecodable", "breaker")


class Timeout(MessagingError, TimeoutError):
    """A call's time ran out.

    Attributes:
        maybe_delivered: For a publish, whether the broker may have stored the message all the same.
    """

    codes = ("timeout",)

    def __init__(self, message: str, *, maybe_delivered: bool = False, **details: Any) -> None:
        super().__init__(message, **details)
        self.maybe_delivered = maybe_delivered


class SerializationError(MessagingError):
    """A message could not be turned into bytes, or bytes not into a message.

    Attributes:
        data: The bytes that could not be read, else ``None``.
    """

    codes = ("encode", "decode")

    def __init__(self, message: str, *, data: bytes | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.data = data


class BackendUnavailable(MessagingError):
    """The service or a broker cannot take the call now."""

    codes = ("down", "disabled", "closed", "window_full", "forked", "loop_thread")


class ConfigurationError(MessagingError, ValueError):
    """A value given by the user is not allowed; the text names it, and what is allowed."""

    codes = ("invalid",)
