"""Secrets are shown nowhere: no repr, log line, metric, error or traceback, whether all goes well or nothing does."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import write
from nats_accounts import Key, Operator
from nats_secured import PATIENCE, Make, included, user
from prometheus_client import generate_latest
from traffic import Traffic

from incident_messaging import MessagingConfig, MessagingError, MessagingService
from incident_messaging.brokers import NatsServer

WORDS = ("r1ght-s3cret", "wr0ng-s3cret")


def signed(*operators: Operator) -> list[str]:
    return [operator.credentials() for operator in operators]


class Held:
    """A right secret and a wrong one, with the server's side of the right one; says nothing of itself."""

    def __init__(self, way: str) -> None:
        operator, key = Operator(), Key.of_user()
        self.field, self.in_file, self.config, self.right, self.wrong = {
            "password": ("password", "password_file", user('user: "app", password: "r1ght-s3cret"'), *WORDS),
            "token": ("token", "token_file", 'authorization { token: "r1ght-s3cret" }', *WORDS),
            "nkey": ("nkey_seed", "nkey_seed_file", user(f"nkey: {key.public}"), key.seed, Key.of_user().seed),
            "creds": ("credentials_text", "credentials", operator.config, *signed(operator, Operator())),
        }[way]  # fmt: skip
        self.rest = {"user": "app"} if way == "password" else {}

    def words(self) -> set[str]:
        """What must not be found: how the lines of both begin. (What all JWTs begin with is shorter.)"""
        lines = [
            line for text in (self.right, self.wrong) for line in text.splitlines() if not line.startswith(("-", "*"))
        ]
        return {line for line in lines if line} | {line[:40] for line in lines if len(line) > 40}


class Seen:
    """All that a program shows of itself."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        self._caplog, self._capfd = caplog, capfd
        self._texts: list[str] = []

    def error(self, error: BaseException) -> None:
        """An error in every form: copied, pickled, and with what its frames hold, as some tools show them."""
        for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
            self._texts += [str(each), repr(each), repr(vars(each)), repr(pickle.dumps(each))]
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        self._texts += ["".join(told.format()), "".join(traceback.format_exception(error))]

    def service(self, service: MessagingService) -> None:
        self._texts += [repr(service), repr(service._config), str(service._config), repr(service.health())]
        self._texts += [str(service.health().to_dict())]

    def everything(self) -> Iterator[str]:
        for each in self._caplog.records:
            yield repr(vars(each)) + each.getMessage() + logging.Formatter().format(each)
        yield generate_latest().decode()
        yield "".join(self._capfd.readouterr())
        yield from self._texts


def called(seen: Seen, service: MessagingService, *, works: bool) -> None:
    """Whatever talks to the server."""
    calls = {
        "connect": lambda: service.connect(PATIENCE),
        "publish": lambda: service.publish("orders", {"n": 1}, timeout=PATIENCE),
        "publish_nowait": lambda: service.publish_nowait("orders", {"n": 1}).result(PATIENCE),
        "publish_batch": lambda: service.publish_batch("orders", [{"n": 1}], timeout=PATIENCE),
        "subscribe": lambda: service.subscribe("orders", timeout=PATIENCE),
        "dead_letters": lambda: list(service.dead_letters.list()),
    }
    for name, call in calls.items():
        error = None
        try:
            call()
        except MessagingError as raised:
            error = raised
        assert (error is None) == works, (name, error)
        if error is not None:
            seen.error(error)
    seen.service(service)


@pytest.mark.parametrize("way", ["password", "token", "nkey", "creds"])
def test_a_secret_is_found_nowhere(
    on_nats: Make, nats_server_factory: Any, tmp_path: Path, caplog: Any, capfd: Any, way: str
) -> None:
    caplog.set_level(logging.DEBUG)  # of the root logger: nats-py's and asyncio's, too
    held, seen = Held(way), Seen(caplog, capfd)
    server: NatsServer = nats_server_factory(config=held.config)
    called(seen, on_nats(server, **held.rest, **{held.field: held.right}), works=True)
    called(seen, on_nats(server, **held.rest, **{held.field: held.wrong}), works=False)
    file = write(tmp_path / "secret", held.wrong)
    called(seen, on_nats(server, **held.rest, **{held.in_file: file}), works=False)
    file.write_bytes(held.right.encode()[:-60] + b"\xff")  # text that is none
    called(seen, on_nats(server, **held.rest, **{held.in_file: file}), works=False)
    if way in ("nkey", "creds"):
        write(file, held.right[: len(held.right) // 2])
        called(seen, on_nats(server, **held.rest, **{held.in_file: file}), works=False)
    gc.collect()  # what nobody waited for is told now
    words = held.words()
    assert not [text[:300] for text in seen.everything() for word in words if word in text]


def test_a_secret_that_changes_is_found_nowhere(
    on_nats: Make, nats_server_factory: Any, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    held, seen = Held("password"), Seen(caplog, capfd)
    rights, file = tmp_path / "rights.conf", write(tmp_path / "secret", held.right)
    write(rights, held.config)
    server = nats_server_factory(config=included(rights))
    service = on_nats(server, password_file=file, **held.rest)
    with Traffic(service) as traffic:
        write(rights, held.config.replace(held.right, held.wrong))
        server.reload()
        traffic.stands_still("authorization violation")
        seen.service(service)
        write(file, held.wrong)
        traffic.flows()
        seen.service(service)
    words = held.words()
    assert not [text[:300] for text in seen.everything() for word in words if word in text]


def test_a_configuration_that_is_wrong_shows_no_secret(tmp_path: Path, caplog: Any, capfd: Any) -> None:
    held, seen = Held("creds"), Seen(caplog, capfd)
    wrong = [
        {"credentials_text": held.right, "nkey_seed": held.wrong},
        {"nkey_seed": held.right, "nkey_seed_file": tmp_path / "seed"},
        {"token": [held.right]},
        {"password": held.right},
        {"servers": f"nats://app:{held.words().pop()}@127.0.0.1:4222"},
    ]
    for nats in wrong:
        try:
            MessagingConfig.from_mapping({"nats": nats})
        except MessagingError as error:
            seen._texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
        else:
            pytest.fail("it was taken")
    words = held.words()
    assert not [text[:300] for text in seen.everything() for word in words if word in text]
