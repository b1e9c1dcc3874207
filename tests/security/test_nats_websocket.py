"""``ws://`` and ``wss://``: NATS through a WebSocket, which nats-py makes by aiohttp."""

from __future__ import annotations

from typing import Any

import nats.aio.transport
import pytest
from certificates import Kit
from nats_secured import Make, tls
from traffic import Traffic
from waiting import takes

from incident_messaging import ConnectionFailed
from incident_messaging.brokers.ports import HOST, free_port

#: Seconds for a call; what is wrong is said much sooner.
TIMEOUT = 20.0

# nats-py's call of aiohttp.
pytestmark = pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float' is deprecated:DeprecationWarning")


@pytest.fixture
def address() -> str:
    return f"{HOST}:{free_port()}"


def websocket(address: str, certificates: Kit | None = None) -> str:
    secured = "no_tls: true" if certificates is None else tls(certificates.server)
    return f'websocket {{ listen: "{address}", {secured} }}'


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_traffic_goes_on_over_a_restart(
    on_nats: Make, nats_server_factory: Any, certificates: Kit, address: str, scheme: str
) -> None:
    secured = scheme == "wss"
    server = nats_server_factory(config=websocket(address, certificates if secured else None))
    trusts = {"tls_ca_file": certificates.ca_file} if secured else {}
    with Traffic(on_nats(server, servers=[f"{scheme}://{address}"], **trusts)) as traffic:
        server.restart()
        traffic.flows()


@pytest.mark.parametrize(
    ("trusted", "scheme", "code", "words"),
    [
        ("other", "wss", "tls", "unable to get local issuer certificate"),
        ("authority", "ws", "unreachable", "400"),
    ],
    ids=["wrong authority", "plain text to TLS"],
)
def test_what_is_wrong_is_said(
    on_nats: Make, nats_server_factory: Any, certificates: Kit, address: str,
    trusted: str, scheme: str, code: str, words: str,
) -> None:  # fmt: skip
    server = nats_server_factory(config=websocket(address, certificates))
    trusts = {"tls_ca_file": getattr(certificates, trusted).ca_file} if scheme == "wss" else {}
    service = on_nats(server, servers=[f"{scheme}://{address}"], **trusts)
    with takes(at_most=TIMEOUT / 2), pytest.raises(ConnectionFailed, match=words) as caught:
        service.connect(TIMEOUT)
    assert caught.value.code == code, caught.value
    assert address in str(caught.value)


def test_without_aiohttp_it_says_what_to_install(
    on_nats: Make, nats_server_factory: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats.aio.transport, "aiohttp", None)
    server = nats_server_factory(config=websocket(address))
    with pytest.raises(ConnectionFailed, match="pip install aiohttp"):
        on_nats(server, servers=[f"ws://{address}"]).connect(TIMEOUT)
