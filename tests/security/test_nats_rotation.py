"""Certificates, passwords, keys and JWTs that change on disk while messages flow over NATS."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Kit
from files import write
from nats_accounts import Key, Operator
from nats_secured import PATIENCE, Make, included, replace_config, tls, user
from traffic import Traffic
from waiting import until

#: Seconds that a JWT is good for which is to run out: enough to log in with it on a machine that has much to do.
LIFETIME = 8.0


def authorization(way: str, secret: str) -> str:
    """What a server is given for the secret that a file of the client holds."""
    return {
        "password": user(f'user: "app", password: "{secret}"'),
        "token": f'authorization {{ token: "{secret}" }}',
        "nkey": user(f"nkey: {secret}"),
    }[way]


@pytest.mark.parametrize("way", ["password", "token", "nkey"])
def test_a_secret_that_the_server_has_changed(
    on_nats: Make, nats_server_factory: Any, tmp_path: Path, way: str
) -> None:
    keys = [Key.of_user(), Key.of_user()]
    held = [key.seed for key in keys] if way == "nkey" else ["first", "second"]
    known = [key.public for key in keys] if way == "nkey" else held
    rights, file = tmp_path / "rights.conf", tmp_path / "secret"
    write(rights, authorization(way, known[0]))
    write(file, held[0])
    server = nats_server_factory(config=included(rights))
    field = {"password": "password_file", "token": "token_file", "nkey": "nkey_seed_file"}[way]
    service = on_nats(server, **{field: file}, **({"user": "app"} if way == "password" else {}))
    with Traffic(service) as traffic:
        write(rights, authorization(way, known[1]))
        server.reload()  # the server throws out whoever came in by the old one
        traffic.stands_still("authorization violation")
        write(file, held[1])
        traffic.flows()


def short_lived(on_nats: Make, nats_server_factory: Any, operator: Operator, file: Path) -> Traffic:
    """Traffic by a JWT that runs out soon, made when the server is there already."""
    server = nats_server_factory(config=operator.config)
    write(file, operator.credentials(seconds=LIFETIME))
    return Traffic(on_nats(server, credentials=file))


def test_a_jwt_that_has_run_out(on_nats: Make, nats_server_factory: Any, tmp_path: Path, caplog: Any) -> None:
    operator, file = Operator(), tmp_path / "app.creds"
    with short_lived(on_nats, nats_server_factory, operator, file) as traffic:
        traffic.stands_still("authorization violation")
        assert "NATS cannot connect again: authorization violation" in caplog.text
        for broken in ("", operator.credentials()[:300]):  # as somebody who writes it in place leaves it for a moment
            file.write_text(broken)
            traffic.stands_still("app.creds is")
        file.unlink()
        traffic.stands_still("No such file")
        write(file, operator.credentials())
        traffic.flows()


def test_a_jwt_that_is_replaced_in_time(on_nats: Make, nats_server_factory: Any, tmp_path: Path, caplog: Any) -> None:
    operator, file = Operator(), tmp_path / "app.creds"
    with short_lived(on_nats, nats_server_factory, operator, file) as traffic:
        write(file, operator.credentials())
        assert until(lambda: "connection is back" in caplog.text, PATIENCE)
        traffic.flows()
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_why_the_server_hung_up_is_logged(on_nats: Make, nats_server_factory: Any, caplog: Any) -> None:
    """Where nothing is on its way to the server: else its last words may be lost with the connection."""
    operator = Operator()
    server = nats_server_factory(config=operator.config)
    on_nats(server, credentials_text=operator.credentials(seconds=LIFETIME)).connect(PATIENCE)
    assert until(lambda: "user authentication expired, connecting again" in caplog.text, PATIENCE)


def test_certificates_of_another_authority(
    on_nats: Make, nats_server_factory: Any, certificates: Kit, tmp_path: Path
) -> None:
    old, new = certificates.authority, Authority(tmp_path, "new")
    trusted = Path(shutil.copy(old.ca_file, tmp_path / "ca.pem"))
    ours, served = old.issue("rotated", hosts=()), old.issue("rotated-server")

    def config(authority: Authority) -> str:
        return tls(served, f'ca_file: "{authority.ca_file}"', "verify: true")

    server = nats_server_factory(config=config(old))
    shows = {"tls_cert_file": ours.cert_file, "tls_key_file": ours.key_file}
    with Traffic(on_nats(server, enable_tls=True, tls_ca_file=trusted, **shows)) as traffic:
        served.replace_by(new.issue("server"))
        replace_config(server, config(new))
        traffic.stands_still("TLS failed: unable to get local issuer certificate")
        write(trusted, new.ca_file.read_text())
        traffic.stands_still("TLS failed")  # it trusts the server, which does not trust it
        ours.replace_by(new.issue("client", hosts=()))
        traffic.flows()


def test_a_client_that_is_made_anew_waits_for_its_files(
    on_nats: Make, nats_server_factory: Any, tmp_path: Path
) -> None:
    """Where nats-py's own reconnect has ended for good, the SDK's takes over: a missing file is not the end either."""
    server = nats_server_factory(config=authorization("password", "right"))
    file = write(tmp_path / "password", "right")
    # What the server has sent to the dead client comes again after the ack time-out.
    service = on_nats(server, user="app", password_file=file, ack_wait_ms=1000)
    with Traffic(service) as traffic:
        file.rename(tmp_path / "away")
        (outlet,) = service._connections.outlets()
        outlet.broker._loop.call(outlet.broker._connection._client._reading_task.cancel)  # type: ignore[attr-defined]
        traffic.stands_still("No such file")
        (tmp_path / "away").rename(file)
        traffic.flows()
