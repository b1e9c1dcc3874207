"""The connection's state, as librdkafka tells it piece by piece through error and log callbacks.

librdkafka raises nothing when a broker is away, refuses the login or speaks no TLS: it reports each
address by `error_cb` and tries again for ever. `Link` counts these until every address has said no.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, Final, Literal

from confluent_kafka import KafkaError

from incident_messaging.backends.kafka import errors
from incident_messaging.errors import ConfigurationError, MessagingError, Timeout

log = logging.getLogger("incident_messaging.kafka")

#: A broker lists its requests' versions at each connection; librdkafka logs them with ``debug=feature``.
_FETCH = re.compile(r"ApiKey Fetch \(1\) Versions \d+\.\.(\d+)")
#: A topic's id in the broker's metadata differs from the one before; logged with ``debug=topic``.
_REMADE = re.compile(r"Topic (\S+) changed id from (\S+) to ")
_NO_ID = "A" * 22
_ENDING: Final = "incident-messaging-kafka-end"
#: A server that asks for a login takes the first request, and hangs up at the second where there is none.
_SHOWN_OUT = re.compile(r"Disconnected\b.*closed by peer.* in state UP[,)]")
#: Fetch 15 came with Kafka 3.5 (KIP-903), the oldest that is supported.
_OLDEST_FETCH = 15
#: Failures that say no for the whole server, not for one of the addresses behind its name.
_DEFINITE = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._RESOLVE})


#: Clients whose end nobody waits for, where no thread could be had for it.
_kept: list[list[Any]] = []


def let_go(clients: list[Any]) -> None:
    """Drop clients, which the list alone owns, on a thread of their own.

    librdkafka waits there for its threads, one of which may be looking up a name, or asking the user's source of
    tokens: whoever holds a lock, or has reports to bring, must not wait for that.
    """
    if not any(client is not None for client in clients):
        return
    try:
        threading.Thread(target=clients.clear, name=_ENDING, daemon=True).start()
    except RuntimeError:  # the interpreter ends
        _kept.append(clients)


class DebugLog:
    """Where librdkafka's own lines go: to ``incident_messaging.kafka``, below what is shown by default.

    They repeat themselves while a broker is away; a change of state is logged by `Link`, once.
    """

    def log(self, _level: int, _format: str, facility: str, _client: str, text: str) -> None:
        """Take a line, as ``logging.Logger.log`` does."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("librdkafka %s: %s", facility, text)


class TopicLog(DebugLog):
    """A consumer's log, which tells of topics that were deleted and made anew under it.

    librdkafka goes on in the new topic at the offset it had in the old one, and says nothing else.

    Attributes:
        remade: The topics that were met so; who has dealt with one takes it out.
    """

    def __init__(self) -> None:
        self.remade: set[str] = set()

    def log(self, level: int, form: str, facility: str, client: str, text: str) -> None:
        """Take a line, as ``logging.Logger.log`` does."""
        if (found := _REMADE.search(text)) and found[2] != _NO_ID:
            self.remade.add(found[1])
        super().log(level, form, facility, client, text)


class Link(DebugLog):
    """The state of a producer's connection. Fed by the thread that polls; read by any.

    Attributes:
        state: Never connected, connected, or lost after it was.
        trouble: The last trouble in words; kept after it has passed.
        refusals: How often every address has said no since the beginning, before the first connection.
        refusal: What they said last.
        asks: Whether a source of tokens is asked, and has not answered.
    """

    def __init__(self, bootstrap_servers: str, tls_trouble: Callable[[str], str] = lambda _server: "") -> None:
        """Begin without a connection; ``tls_trouble`` looks what is wrong with TLS at an address (`diagnosis`)."""
        self.servers = ", ".join(_addresses(bootstrap_servers))
        self.state: Literal["new", "connected", "disconnected"] = "new"
        self.trouble: str | None = None
        self.refusals = 0
        self.refusal: MessagingError | None = None
        self.asks = False
        self._tls_trouble = tls_trouble
        self._too_old: ConfigurationError | None = None
        self._last: KafkaError | None = None
        self._silent = True
        self._shown_out = False
        self._noes = dict.fromkeys(_addresses(bootstrap_servers), 0)

    @property
    def connected_once(self) -> bool:
        """Whether there ever was a connection."""
        return self.state != "new"

    @property
    def hopeless(self) -> MessagingError | None:
        """The refusal, if trying again cannot help: the broker's version. A file may be there the next time."""
        return self._too_old

    def error(self, error: KafkaError) -> None:
        """librdkafka's ``error_cb``."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            silent, self._silent = self._silent, True
            self._lost(error)
        else:
            silent, self._silent = True, False
            self._last = error
            self.trouble = error.str()
        # A server that takes the connection and hangs up, as where a login is missing, is in no error of its own.
        if silent and self.state == "new":
            self._count(error)

    def log(self, level: int, form: str, facility: str, client: str, text: str) -> None:
        """librdkafka's log; one line of it tells the broker's version, one that a login is missing."""
        if facility == "FAIL" and "Disconnected" in text:
            self._hung_up(text)
        if facility == "APIVERSION":
            if found := _FETCH.search(text):
                self._check_version(int(found[1]))
            return
        super().log(level, form, facility, client, text)

    def up(self) -> None:
        """A broker has answered, so it has also let us in."""
        if self.state != "connected" and self.hopeless is None:
            log.info("Kafka connected (%s)", self.servers)
            self.state = "connected"

    def timed_out(self) -> MessagingError:
        """The error of a call that ended before any address had answered or refused."""
        if self.state == "disconnected":
            return Timeout(f"Kafka has stopped answering ({self.servers})", backend="kafka")
        if self.asks:
            return errors.no_token(self.servers)
        return self.refusal or errors.no_connection(self.servers, self._last)

    def refuse(self, refusal: MessagingError) -> None:
        """Every address has said no, or there is no way to ask."""
        if self.refusals == 0:
            log.warning("%s", refusal)
        self.refusal = refusal
        self.refusals += 1

    def _lost(self, error: KafkaError) -> None:
        if self.state == "connected":
            self.state = "disconnected"
            log.warning("Kafka connection lost (%s): %s", self.servers, self.trouble or error.str())

    def _count(self, error: KafkaError) -> None:
        if named := self._said_no(error.str(), definite=error.code() in _DEFINITE):
            self.refuse(self._refusal(error, named[0]))

    def _hung_up(self, text: str) -> None:
        """Count a server that lets nobody in without a login: of several such nothing else is said."""
        self._shown_out = _SHOWN_OUT.search(text) is not None
        if self._shown_out and self.state == "new" and self._named(text) and self._said_no(text, definite=True):
            self.refuse(errors.hung_up(self.servers))

    def _said_no(self, text: str, *, definite: bool) -> list[str]:
        """Count a no of the addresses that a text names, or of all of them; these, if every address has said no now."""
        named = self._named(text) or list(self._noes)
        for server in named:
            self._noes[server] += 2 if definite or _is_literal(server) else 1
        # Two for a name: it may stand for an IPv4 and an IPv6 address, and librdkafka tries one at a time.
        if any(noes < 2 for noes in self._noes.values()):
            return []
        self._noes = dict.fromkeys(self._noes, 0)
        return named

    def _named(self, text: str) -> list[str]:
        return [server for server in self._noes if f"{server}/" in text]

    def _refusal(self, error: KafkaError, server: str) -> MessagingError:
        silent = error.code() == KafkaError._ALL_BROKERS_DOWN
        found = ""
        if silent or "certificate verify failed" in error.str():
            found = self._tls_trouble(server)
        if silent and not found and self._shown_out:
            return errors.caused(errors.hung_up(self.servers), error)
        return errors.no_connection(self.servers, error, found)

    def _check_version(self, fetch: int) -> None:
        if fetch < _OLDEST_FETCH:
            self.state = "new"
            text = f"the Kafka broker is older than 3.5, the oldest that is supported ({self.servers})"
            self._too_old = ConfigurationError(text, backend="kafka")
            self.refuse(self._too_old)


def _addresses(bootstrap_servers: str) -> list[str]:
    servers = [server.strip().rpartition("://")[2] for server in bootstrap_servers.split(",") if server.strip()]
    return [server if re.search(r":\d+$", server) else f"{server}:9092" for server in servers]


def _is_literal(server: str) -> bool:
    try:
        ipaddress.ip_address(server.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
