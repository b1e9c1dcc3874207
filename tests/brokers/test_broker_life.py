"""Start, stop, kill, freeze, wipe: seen by raw clients of either broker."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from broker_clients import RawKafka, RawNats
from broker_waits import gone

from incident_messaging.brokers import BrokerError, KafkaBroker, NatsServer

Broker = NatsServer | KafkaBroker


@dataclass
class Kind:
    make: Callable[..., Broker]
    client: Callable[[Broker], RawNats | RawKafka]


KINDS = {
    "nats": Kind(NatsServer, lambda broker: RawNats(f"nats://{broker.address}")),
    "kafka": Kind(KafkaBroker, lambda broker: RawKafka(broker.address)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def broker(kind: Kind) -> Iterator[Broker]:
    with kind.make() as broker:
        yield broker


def guard_pid(broker: Broker) -> int:
    assert broker._guard is not None
    return broker._guard.pid


def test_what_was_acknowledged_before_a_kill_is_there_after_the_next_start(kind: Kind, broker: Broker) -> None:
    client = kind.client(broker)
    client.write("one", "two")
    address, pid, guard = broker.address, broker.pid, guard_pid(broker)
    assert pid is not None

    broker.kill()

    assert (broker.running, broker.pid) == (False, None)
    assert gone(pid)
    assert gone(guard)
    broker.start()
    assert broker.address == address
    client.write("three")
    assert client.read() == ["one", "two", "three"]


def test_restart_keeps_port_and_data_in_a_new_process(kind: Kind, broker: Broker) -> None:
    client = kind.client(broker)
    client.write("one")
    pid = broker.pid
    broker.start()  # runs already: nothing happens
    assert broker.pid == pid

    broker.restart()

    assert broker.running
    assert broker.pid != pid
    assert client.read() == ["one"]


def test_a_frozen_broker_is_silent_until_it_is_thawed(kind: Kind, broker: Broker) -> None:
    client = kind.client(broker)
    assert client.answers(timeout=30)

    broker.freeze()
    assert broker.running
    assert not client.answers(timeout=1)
    broker.thaw()

    assert client.answers(timeout=30)


def test_a_frozen_broker_stops_and_leaves_no_process(kind: Kind, broker: Broker) -> None:
    pid, guard = broker.pid, guard_pid(broker)
    assert pid is not None
    broker.freeze()

    began = time.monotonic()
    broker.stop(timeout=40)

    assert time.monotonic() - began < 35, "it was thawed, so it could end by itself"
    assert gone(pid)
    assert gone(guard)
    broker.start()
    assert kind.client(broker).answers(timeout=30), "the freeze is over"


def test_a_broker_that_does_not_end_in_time_is_killed(kind: Kind, broker: Broker) -> None:
    pid = broker.pid
    assert pid is not None
    broker.freeze()
    broker._frozen = False  # as if it had been frozen by somebody else: SIGTERM waits for a SIGCONT

    broker.stop(timeout=0.3)

    assert gone(pid)
    assert not broker.running


def test_wipe_takes_the_data_and_only_of_a_stopped_broker(kind: Kind, broker: Broker) -> None:
    client = kind.client(broker)
    client.write("one")
    with pytest.raises(BrokerError, match="stop or kill it before wipe"):
        broker.wipe()

    broker.stop()
    broker.wipe()
    broker.start()

    assert not client.has_data()


def test_verbs_on_a_stopped_broker(kind: Kind) -> None:
    broker = kind.make()
    try:
        for harmless in (broker.thaw, broker.stop, broker.kill, broker.terminate):
            harmless()
        with pytest.raises(BrokerError, match=f"{broker.address} does not run"):
            broker.freeze()
    finally:
        broker.close()


def test_a_taken_port_is_named_with_the_end_of_the_log(kind: Kind) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        broker = kind.make(port=squatter.getsockname()[1])
        try:
            with pytest.raises(BrokerError) as caught:
                broker.start()
        finally:
            broker.close()
    text = str(caught.value)
    assert broker.address in text
    assert "the end of its log" in text
    assert "ddress already in use" in text
    assert not broker.running


def test_a_start_that_takes_too_long_is_given_up_and_leaves_no_process(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = kind.make()
    monkeypatch.setattr(broker, "_is_ready", lambda: False)
    try:
        broker.launch()
        pid, guard = broker.pid, guard_pid(broker)
        assert pid is not None
        with pytest.raises(BrokerError, match=r"was not ready within 0\.2 s"):
            broker.wait_ready(timeout=0.2)
        assert gone(pid)
        assert gone(guard)
    finally:
        broker.close()


def test_close_deletes_a_folder_of_its_own_and_keeps_one_that_was_given(tmp_path: os.PathLike[str]) -> None:
    with NatsServer() as own, NatsServer(store_dir=tmp_path) as given:
        RawNats(given.url).write("one")
        assert own.folder.is_dir()

    assert not own.folder.exists()
    with NatsServer(store_dir=tmp_path) as again:
        assert RawNats(again.url).read() == ["one"]


def test_nats_takes_its_options(nats_server_factory: Callable[..., NatsServer]) -> None:
    server = nats_server_factory(max_payload=2048, jetstream=False, config="authorization: { token: secret }")

    told = server.monitor("/varz")

    assert server.url == f"nats://{server.address}"
    assert server.monitor_url == f"http://127.0.0.1:{server.monitor_port}"
    assert (told["max_payload"], told["auth_required"]) == (2048, True)
    assert not told.get("jetstream", {}).get("config")


def test_kafka_takes_its_config_and_makes_no_topic_by_itself(
    kafka_broker_factory: Callable[..., KafkaBroker],
) -> None:
    import confluent_kafka.admin as admin

    broker = kafka_broker_factory(config={"message.max.bytes": "4321"})
    client = admin.AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    resource = admin.ConfigResource(admin.ConfigResource.Type.BROKER, "1")

    settings = client.describe_configs([resource])[resource].result(30)

    assert settings["message.max.bytes"].value == "4321"
    assert settings["auto.create.topics.enable"].value == "false"
