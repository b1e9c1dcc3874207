"""Brokers that refuse: a disk without room, a stream with a limit, a right that is taken away and given back."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation, ResourceType
from history import History, judge
from kafka_rules import GUARDED, allow, deny
from load import Publishers, all_handled, handlers
from proxy import proxy
from rigs import PREFIX, KafkaRig, NatsRig, Rig, kafka_settings, nats_settings
from waiting import takes, until

from incident_messaging import MessagingConfig, MessagingError, MessagingService, PublishFailed, Timeout
from incident_messaging.brokers import KafkaBroker, NatsServer

PATIENCE = 60.0
#: Seconds that a machine of two cores, which brokers and tests share, may add to the end of a call.
SLACK = 5.0

pytestmark = pytest.mark.slow


@contextmanager
def nats_on(**options: Any) -> Iterator[Rig]:
    with NatsServer(**options) as server, proxy(server.port) as between:
        yield NatsRig(server, between, nats_settings(server.port), order_survives_losses=False)


@contextmanager
def kafka_on(config: dict[str, str], **options: Any) -> Iterator[Rig]:
    with KafkaBroker(config=config, **options) as broker, proxy(broker.port) as between:
        yield KafkaRig(broker, between, kafka_settings(broker.port))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@contextmanager
def kafka_on_small_disk(disk: Path) -> Iterator[Rig]:
    # Segments that are given up to deletion, or made ahead, would blur when the disk is full.
    config = {"log.index.size.max.bytes": "65536", "offsets.topic.num.partitions": "1", "num.partitions": "1"}
    with kafka_on(config, store_dir=disk / "kafka") as rig:
        yield rig


@contextmanager
def nats_on_small_disk(disk: Path) -> Iterator[Rig]:
    # The server gives itself three quarters of what is free, and would then say that the stream is full.
    with nats_on(config=f'jetstream {{ store_dir: "{disk / "nats"}", max_file_store: 1GB }}') as rig:
        yield rig


@pytest.mark.parametrize("on_small_disk", [nats_on_small_disk, kafka_on_small_disk], ids=["nats", "kafka"])
def test_a_full_disk_is_an_error_in_time_and_what_was_acknowledged_is_kept(
    nothing_left_behind: None, small_disk: Path, on_small_disk: Callable[[Path], Any]
) -> None:
    history = History()
    with on_small_disk(small_disk) as rig:
        ballast = small_disk / "ballast"
        with MessagingService(MessagingConfig.from_mapping(rig.settings)) as service:
            publish_one(service, history, 0, timeout=30.0)
            fill(ballast, small_disk, leave=8_000_000)
            number = 0
            while not history.of("failed", "unknown"):
                number += 1
                assert number < 200, "the disk is never full"
                body = base64.b64encode(os.urandom(300_000)).decode()  # nothing that could be compressed
                publish_one(service, history, number, timeout=3.0, body=body)
            ballast.unlink()
            # Kafka stops when it cannot write; a NATS server runs on, and writes again only after a restart.
            if rig.broker.running:
                rig.broker.stop()
            rig.broker.start()
            assert until(lambda: publish_one(service, history, number + 1_000, timeout=5.0), PATIENCE)
        verdict = judge(history, rig.stored("load"))
        verdict.require(again=0)
        assert verdict.acknowledged > 2


def fill(ballast: Path, disk: Path, *, leave: int) -> None:
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, shutil.disk_usage(disk).free - leave))


def publish_one(service: MessagingService, history: History, number: int, *, timeout: float, body: str = "") -> bool:
    name = f"k/{number}"
    history.note("sent", name)
    try:
        with takes(at_most=timeout + SLACK):
            service.publish("load", {"key": "k", "n": number, "body": body}, key="k", timeout=timeout)
    except MessagingError as error:
        history.note("unknown" if isinstance(error, Timeout) and error.maybe_delivered else "failed", name)
        return False
    history.note("acknowledged", name)
    return True


def test_a_stream_with_a_limit_refuses_and_takes_again(nothing_left_behind: None) -> None:
    history = History()
    with nats_on() as rig:
        rig.settings["nats"] |= {"stream_max_bytes": 200_000}
        with MessagingService(MessagingConfig.from_mapping(rig.settings)) as service:
            with handlers(service, history):
                number = 0
                while publish_one(service, history, number, timeout=10.0, body="x" * 10_000):
                    number += 1
                with pytest.raises(PublishFailed) as caught:
                    service.publish("load", {"key": "k", "n": -1, "body": "x" * 10_000})
                assert caught.value.code == "stream_full"
                assert until(all_handled(history), PATIENCE), "nothing acknowledged was dropped to make room"
        verdict = judge(history, rig.stored("load"))
        verdict.require(again=0)
        assert verdict.acknowledged == number > 5


# -- rights -----------------------------------------------------------------------------------------------------


class NatsRights:
    """A user of a server whose file of rights is read again on demand."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.allow()

    def _write(self, denied: str) -> None:
        rights = f'permissions: {{ publish: {{ deny: "{denied}" }} }}'
        self._file.write_text(f'authorization {{ users = [ {{ user: "u", password: "p", {rights} }} ] }}\n')

    def allow(self) -> None:
        self._write("nothing.at.all")

    def deny(self) -> None:
        self._write(f"{PREFIX}.load")

    def apply(self, rig: Rig) -> None:
        rig.broker.reload()  # type: ignore[union-attr]


class KafkaRights:
    """What everybody may do with a topic of a broker that knows access rules."""

    def __init__(self) -> None:
        self._denied = False

    def allow(self) -> None:
        self._denied = False

    def deny(self) -> None:
        self._denied = True

    def apply(self, rig: Rig) -> None:
        servers, topic = f"127.0.0.1:{rig.broker.port}", f"{PREFIX}.load"
        if self._denied:
            deny(servers, ResourceType.TOPIC, topic, AclOperation.WRITE)
        else:
            allow(servers, ResourceType.TOPIC, topic)


@contextmanager
def guarded_nats(tmp_path: Path) -> Iterator[tuple[Rig, Any]]:
    rights = NatsRights(tmp_path / "rights.conf")
    to_root = "../" * 20  # a path of an include begins at the folder of the configuration
    with nats_on(config=f'include "{to_root}{tmp_path / "rights.conf"}"') as rig:
        rig.settings["nats"] |= {"user": "u", "password": "p"}
        yield rig, rights


@contextmanager
def guarded_kafka(_tmp_path: Path) -> Iterator[tuple[Rig, Any]]:
    with kafka_on(GUARDED) as rig:
        yield rig, KafkaRights()


@pytest.mark.parametrize("guarded", [guarded_nats, guarded_kafka], ids=["nats", "kafka"])
def test_a_right_that_is_taken_away_and_given_back(
    nothing_left_behind: None, tmp_path: Path, guarded: Callable[[Path], Any]
) -> None:
    history = History()
    with guarded(tmp_path) as (rig, rights):
        with MessagingService(MessagingConfig.from_mapping(rig.settings)) as service:
            with handlers(service, history), Publishers(service, history, timeout=5.0, pause=0.01, tries=1):
                assert until(lambda: history.acknowledged > 50, PATIENCE)
                rights.deny()
                rights.apply(rig)
                assert until(lambda: history.count("failed") > 5, PATIENCE), "refused, and it says so"
                with pytest.raises(PublishFailed, match=r"faults\.load") as caught:
                    service.publish("load", {"key": "k", "n": 0}, timeout=5.0)
                assert caught.value.code == "denied"
                service.publish("other", {"key": "k", "n": 0}, timeout=20.0)
                rights.allow()
                rights.apply(rig)
                goal = history.acknowledged + 50
                assert until(lambda: history.acknowledged > goal, PATIENCE), "it works again by itself"
            with handlers(service, history):
                assert until(all_handled(history), PATIENCE)
        judge(history, [name for name in rig.stored("load") if name != "k/0"]).require(
            again=rig.again_per_kill, order=rig.order_survives_losses
        )
