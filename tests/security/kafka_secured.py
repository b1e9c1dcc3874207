"""One Kafka with every way in: a listener each for TLS, mutual TLS, SASL with and without it, and what is wrong."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from certificates import Authority, Certificate, Kit
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from waiting import until

from incident_messaging import MessagingService
from incident_messaging.brokers import KafkaBroker
from incident_messaging.brokers.ports import HOST, free_port

PATIENCE = 20.0
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
#: Who may do everything, and whose password no text of the SDK may hold.
ROOT, ROOT_PASSWORD = "root", "s3cr3t-of-root"
#: Who may do everything, too, and logs in by SCRAM with a password that changes.
OTHER = "rotating"
#: Who has no right but what an access rule gives.
USER, USER_PASSWORD = "app", "s3cr3t-of-app"
#: Milliseconds after which the listener `REAUTH` asks who is there again.
REAUTH_MS = 2000

_LISTENERS = {
    "PLAINTEXT": "PLAINTEXT",
    "TLS": "SSL",
    "MTLS": "SSL",
    "ROTATED": "SSL",
    "SASL_TLS": "SASL_SSL",
    "SASL_BARE": "SASL_PLAINTEXT",
    "REAUTH": "SASL_PLAINTEXT",
    "ONLY_PLAIN": "SASL_PLAINTEXT",
    "EXPIRED": "SSL",
    "ELSEWHERE": "SSL",
}
_LOGIN = "org.apache.kafka.common.security.{} required"
_JAAS = {
    "PLAIN": _LOGIN.format("plain.PlainLoginModule") + f' user_{ROOT}="{ROOT_PASSWORD}" user_{USER}="{USER_PASSWORD}";',
    "SCRAM-SHA-256": _LOGIN.format("scram.ScramLoginModule") + ";",
    "SCRAM-SHA-512": _LOGIN.format("scram.ScramLoginModule") + ";",
    # Without a handler for its tokens Kafka takes those that nobody has signed.
    "OAUTHBEARER": _LOGIN.format("oauthbearer.OAuthBearerLoginModule") + ' unsecuredLoginStringClaim_sub="broker";',
}


class SecuredKafka:
    """The broker, its addresses by the listeners' names, and what is done to it past the SDK."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.ports = {name: free_port() for name in (*_LISTENERS, "CONTROLLER")}
        self.broker = KafkaBroker(
            port=self.ports["PLAINTEXT"], controller_port=self.ports["CONTROLLER"], config=self._properties()
        )

    def address(self, listener: str) -> str:
        return f"{HOST}:{self.ports[listener]}"

    @property
    def admin(self) -> AdminClient:
        """From inside, where all is allowed; keep it until its answers are there."""
        return AdminClient({"bootstrap.servers": self.address("PLAINTEXT"), "log_level": 0})

    def settings(self, listener: str, **kafka: Any) -> dict[str, Any]:
        """A service's settings for a listener, TLS and login as it wants them, for who may do everything."""
        protocol = _LISTENERS[listener]
        base: dict[str, Any] = {"bootstrap_servers": self.address(listener)}
        if protocol.endswith("SSL"):
            base |= {"enable_ssl": True, "ssl_ca_file": str(self.kit.ca_file)}
        if protocol.startswith("SASL"):
            base |= {"enable_sasl": True}
            if kafka.get("sasl_mechanism") != "OAUTHBEARER":
                base |= {"sasl_username": ROOT, "sasl_password": ROOT_PASSWORD}
        return base | kafka

    def remove(self, prefix: str) -> None:
        """Delete all topics whose names begin so, and the groups that read them."""
        admin = self.admin
        gone = [topic for topic in admin.list_topics(timeout=PATIENCE).topics if topic.startswith(prefix)]
        for answer in admin.delete_topics(gone).values() if gone else ():
            answer.result(PATIENCE)
        assert until(lambda: not set(gone) & set(admin.list_topics(timeout=PATIENCE).topics), PATIENCE)

    def begin(self) -> None:
        """Make the users that log in by SCRAM."""
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            self.set_password(ROOT, ROOT_PASSWORD, mechanism)

    def make(self, *topics: str) -> None:
        """Make topics that are not there yet."""
        admin = self.admin
        missing = [NewTopic(topic, 1, 1) for topic in topics if topic not in admin.list_topics(timeout=PATIENCE).topics]
        for answer in admin.create_topics(missing).values() if missing else ():
            answer.result(PATIENCE)
        assert until(lambda: set(topics) <= set(admin.list_topics(timeout=PATIENCE).topics), PATIENCE)

    def set_password(self, user: str, password: str, mechanism: str = "SCRAM-SHA-256") -> None:
        kind = ScramMechanism[mechanism.replace("-", "_")]
        change = UserScramCredentialUpsertion(user, ScramCredentialInfo(kind, 4096), password.encode(), None)
        admin = self.admin
        admin.alter_user_scram_credentials([change])[user].result(PATIENCE)

    def allow(self, rules: Iterable[AclBinding]) -> None:
        """Let rules be the only ones."""
        admin, wanted = self.admin, set(rules)
        admin.delete_acls([_EVERY])[_EVERY].result(PATIENCE)
        for answer in admin.create_acls(list(wanted)).values() if wanted else ():
            answer.result(PATIENCE)
        assert until(lambda: set(admin.describe_acls(_EVERY).result(PATIENCE)) == wanted, PATIENCE)

    def _properties(self) -> dict[str, str]:
        every = {name: f"{name}://{self.address(name)}" for name in self.ports}
        protocols = _LISTENERS | {"CONTROLLER": "PLAINTEXT"}
        properties = {
            "listeners": ",".join(every.values()),
            "advertised.listeners": ",".join(every[name] for name in _LISTENERS),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "inter.broker.listener.name": "PLAINTEXT",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": ";".join(f"User:{name}" for name in ("ANONYMOUS", ROOT, OTHER, "CN=client", "CN=locked")),
            "sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.rotated.ssl.client.auth": "required",
            "group.min.session.timeout.ms": "1000",
            "listener.name.reauth.connections.max.reauth.ms": str(REAUTH_MS),
            "listener.name.only_plain.sasl.enabled.mechanisms": "PLAIN",
        }
        shown = {"EXPIRED": self.kit.expired, "ELSEWHERE": self.kit.wrong_host}
        for name, protocol in _LISTENERS.items():
            if protocol.endswith("SSL"):
                self.show(name, shown.get(name, self.kit.server), self.kit.authority)
                properties |= self._stores(name)
            if protocol.startswith("SASL"):
                properties |= {
                    f"listener.name.{name.lower()}.{mechanism.lower()}.sasl.jaas.config": login
                    for mechanism, login in _JAAS.items()
                }
        return properties

    def show(self, listener: str, shown: Certificate, trusts: Authority) -> None:
        """The certificate of a listener, and whose clients it trusts, from the next start or `reload` on."""
        stores = self._stores(listener)
        Path(stores[f"{_ssl(listener)}.keystore.location"]).write_text(shown.pem)
        Path(stores[f"{_ssl(listener)}.truststore.location"]).write_bytes(trusts.ca_file.read_bytes())

    def reload(self, listener: str) -> None:
        """Have the broker read a listener's certificates anew, and every client in this process connect to it anew."""
        entries = [ConfigEntry(name, value) for name, value in self._stores(listener).items()]
        for entry in entries:
            entry.incremental_operation = AlterConfigOpType.SET
        resource = ConfigResource(ConfigResource.Type.BROKER, str(self.broker.node_id), incremental_configs=entries)
        admin = self.admin
        admin.incremental_alter_configs([resource])[resource].result(PATIENCE)
        shown = Path(self._stores(listener)[f"{_ssl(listener)}.keystore.location"]).read_text()
        address = (HOST, self.ports[listener])
        assert until(lambda: ssl.get_server_certificate(address).strip() in shown, PATIENCE), (
            "it reads them a bit later"
        )
        for connection in psutil.Process().net_connections("tcp"):
            if connection.raddr and connection.raddr.port == self.ports[listener]:
                with suppress(OSError):
                    own = os.dup(connection.fd)
                    try:  # it may have been closed meanwhile, and be something else by now
                        client = socket.socket(fileno=own)
                    except OSError:
                        os.close(own)
                        raise
                    with client:
                        client.shutdown(socket.SHUT_RDWR)

    def _stores(self, listener: str) -> dict[str, str]:
        stores = {
            f"{_ssl(listener)}.{store}store.location": str(self.kit.folder / f"kafka-{listener}-{store}.pem")
            for store in ("key", "trust")
        }
        return stores | {name.replace("location", "type"): "PEM" for name in stores}


def _ssl(listener: str) -> str:
    return f"listener.name.{listener.lower()}.ssl"


_EVERY = AclBindingFilter(
    ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
)


def goes_through(service: MessagingService) -> None:
    """A topic is made, a message published, and one consumed."""
    topic = f"t{uuid.uuid4().hex[:12]}"
    with service:
        service.publish(topic, {"n": 1})
        with service.subscribe(topic, group="g") as subscription:
            delivery = subscription.next(PATIENCE)
            assert delivery is not None
            assert delivery.payload == {"n": 1}


class Tokens:
    """A source of unsigned tokens for OAUTHBEARER, which counts how often it was asked.

    Attributes:
        given: The tokens so far.
        fails: What it raises instead of giving one.
    """

    def __init__(
        self, subject: str = ROOT, *, seconds: float = 3600.0, note: str = "", claims: dict[str, Any] | None = None
    ) -> None:
        """Give tokens for a user, good for so long, with a note in them; ``claims`` win over what is right."""
        self.given: list[str] = []
        self.fails: Exception | None = None
        self._seconds = seconds
        self._claims = {"sub": subject, "jti": note}
        self._wrong = claims or {}

    @property
    def asked(self) -> int:
        return len(self.given)

    def __call__(self) -> tuple[str, float]:
        if self.fails is not None:
            raise self.fails
        now = time.time()
        claims = self._claims | {"iat": now - 10, "exp": now + self._seconds} | self._wrong
        parts = (_base64(json.dumps(part).encode()) for part in ({"alg": "none"}, claims))
        self.given.append(f"{'.'.join(parts)}.")
        return self.given[-1], now + self._seconds


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
