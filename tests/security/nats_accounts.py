"""NATS keys, and a decentralised set-up whose operator, account and users are signed here.

What a JWT says: https://github.com/nats-io/jwt (version 2).
"""

from __future__ import annotations

import base64
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import nkeys

_LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
_JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


class Key:
    """A key pair: what is public, and the seed that signs."""

    def __init__(self, prefix: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), prefix)).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = self._pair.public_key.decode()

    @classmethod
    def of_user(cls) -> Key:
        return cls(nkeys.PREFIX_BYTE_USER)

    def jwt(self, name: str, subject: str, claims: Mapping[str, Any], *, seconds: float | None = None) -> str:
        """A JWT about ``subject``, signed by this key; good for so many seconds where they are given."""
        now = int(time.time())
        body = {"jti": os.urandom(8).hex(), "iat": now, "iss": self.public, "name": name, "sub": subject}
        if seconds is not None:
            body["exp"] = math.ceil(time.time() + seconds)  # whole seconds, and not less than was asked for
        body["nats"] = {"version": 2, **claims}
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encoded(body)}"
        return f"{signed}.{_base64(self._pair.sign(signed.encode()))}"


class Operator:
    """An operator with one account for applications; servers are given `config`, applications `credentials`."""

    def __init__(self) -> None:
        self._key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = Key(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """What a server needs to know: the operator, and the accounts that it has signed."""
        accounts = ((self._account, _LIMITS | _JETSTREAM), (self._system, _LIMITS))  # the system's may have no streams
        preload = "\n".join(
            f'  {key.public}: "{self._key.jwt("account", key.public, {"type": "account", "limits": limits})}"'
            for key, limits in accounts
        )
        operator = self._key.jwt("operator", self._key.public, {"type": "operator"})
        return (
            f'operator: "{operator}"\nresolver: MEMORY\nsystem_account: {self._system.public}\n'
            f"resolver_preload: {{\n{preload}\n}}"
        )

    def credentials(self, *, seconds: float | None = None, allow: list[str] | None = None) -> str:
        """The text of a ``.creds`` file for a new user, who may publish to what is allowed, or to everything."""
        user = Key.of_user()
        claims: dict[str, Any] = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        if allow is not None:
            claims["pub"] = {"allow": allow}
        jwt = self._account.jwt("app", user.public, claims, seconds=seconds)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


def _encoded(part: Mapping[str, Any]) -> str:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
