"""What a client logs in with, as it lies on disk, and whether it has changed since.

How changes are taken up: docs/decisions/0013-rotation-on-kafka.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from incident_messaging.backends.kafka.link import log
from incident_messaging.config import KafkaConfig
from incident_messaging.deadline import now
from incident_messaging.errors import ConfigurationError

#: Seconds between two looks at the files.
_LOOK: Final = 1.0

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
        except ConfigurationError as exc:
            self.tell(str(exc))
            return
        self._password, self._told = stamp, ""
        log.info("the password in %s has changed and is used from now on", self._config.sasl_password_file)


def _names_a_file(name: str) -> bool:
    return name.startswith("ssl.") and name.endswith(".location")


def _stamp(file: str | None) -> _Stamp | None:
    """What changes with a file's content, also where a link is set to another file."""
    try:
        found = os.stat(file) if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_ino, found.st_size)
