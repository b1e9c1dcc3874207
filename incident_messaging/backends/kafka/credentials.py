"""What a client logs in with, as it lies on disk, and whether it has changed since.

How changes are taken up: docs/decisions/0013-rotation-on-kafka.rst.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar, cast

from confluent_kafka import KafkaException

from incident_messaging.backends.kafka.link import log
from incident_messaging.config import KafkaConfig
from incident_messaging.config.extra import is_file
from incident_messaging.deadline import now
from incident_messaging.errors import BackendUnavailable, ConfigurationError

#: Seconds between two looks at the files.
_LOOK: Final = 1.0
_ASKING: Final = "incident-messaging-kafka-token"

_T = TypeVar("_T")

_Stamp = tuple[int, int, int]


class Credentials:
    """The files that one client was made of. Used by the thread alone that polls the client."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        extra = (str(value) for name, value in config.extra.items() if _names_a_file(name))
        fields = (config.ssl_ca_file, config.ssl_cert_file, config.ssl_key_file, config.ssl_key_password_file)
        self._keys = [file for file in (*fields, *extra) if file is not None]
        self._noted: list[_Stamp | None] = []
        self._password: _Stamp | None = None
        self._next_look = 0.0
        self._told = ""

    @contextmanager
    def used(self) -> Iterator[None]:
        """Remember what is there when the block begins, if it ends well: a client is made of it."""
        keys, password = self._stamps(), _stamp(self._config.sasl_password_file)
        yield
        self._noted, self._password, self._told = keys, password, ""
        self._next_look = now() + _LOOK

    def outdated(self, client: Any) -> bool:
        """Look, if it is time to: whether the client was made of other keys or certificates than are there now.

        librdkafka reads those once. A password that has changed it takes while it runs, and is given here.
        """
        if now() < self._next_look:
            return False
        self._next_look = now() + _LOOK
        self._pass_on(client)
        stamps = self._stamps()
        # What is missing at the moment is just being replaced.
        return None not in stamps and stamps != self._noted

    def _stamps(self) -> list[_Stamp | None]:
        return [_stamp(file) for file in self._keys]

    def tell(self, words: str) -> None:
        """Log why what has changed is of no use yet, once."""
        if words != self._told:
            self._told = words
            log.warning("%s; the Kafka client goes on with what it had, and looks again", words)

    def _pass_on(self, client: Any) -> None:
        stamp = _stamp(self._config.sasl_password_file)
        if stamp is None or stamp == self._password:
            return
        try:
            client.set_sasl_credentials(self._config.sasl_username, self._config.resolve_sasl_password())
        except (ConfigurationError, KafkaException) as exc:
            self.tell(str(exc))
            return
        self._password, self._told = stamp, ""
        log.info("the password in %s has changed and is used from now on", self._config.sasl_password_file)


class Making(Generic[_T]):
    """A client that is made: with a source of tokens on a thread of its own, for that one may take its time."""

    def __init__(self, make: Callable[[], _T], config: KafkaConfig) -> None:
        """Begin, or where no source is asked make it at once."""
        self._make = make
        self._made: _T | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        if config.sasl_oauth_token is None:
            self._run()
        else:
            self._thread = threading.Thread(target=self._run, name=_ASKING, daemon=True)
            self._thread.start()

    def ended(self, seconds: float) -> bool:
        """Whether it has ended by now, or does within so many seconds."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def client(self) -> _T:
        """What was made, once; or the error because of which it was not."""
        if self._error is not None:
            raise self._error
        made, self._made = self._made, None
        return cast(_T, made)

    def give_up(self) -> None:
        """Let it end by itself; its client goes with it."""
        log.warning("thread %s did not end in time and is left to finish: it asks sasl_oauth_token", _ASKING)

    def _run(self) -> None:
        try:
            self._made = self._make()
        except Exception as exc:
            self._error = exc
        except BaseException as exc:
            if self._thread is None:
                raise  # Ctrl-C
            self._error = BackendUnavailable(f"the Kafka client could not be made: {exc!r}", backend="kafka")


def _names_a_file(name: str) -> bool:
    return is_file(name) or (name.startswith("ssl.") and name.endswith(".location"))


def _stamp(file: str | None) -> _Stamp | None:
    """What changes with a file's content, also where a link is set to another file."""
    try:
        found = os.stat(file) if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_ino, found.st_size)
