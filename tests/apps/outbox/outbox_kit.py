"""The tests' side: databases, programs that use them, and what has arrived at the broker."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import attrs
import psycopg
from postgres_server import PostgresServer
from waiting import until

from incident_messaging import MessagingConfig, MessagingService

PATIENCE = 45.0
KILLED = -9

HERE = Path(__file__).parent

OUTBOX = {"django": "incident_outbox_outboxmessage", "sqlalchemy": "incident_outbox"}


@attrs.frozen
class Database:
    """A database of a test's own.

    Attributes:
        django: As in ``settings.DATABASES``.
        sqlalchemy: Arguments of ``create_engine``.
        address: A file of SQLite, or the URL of a PostgreSQL.
    """

    django: Mapping[str, Any]
    sqlalchemy: Mapping[str, Any]
    address: str

    def query(self, statement: str) -> list[Any]:
        """The rows, past every framework."""
        with self._connection() as connection:
            return connection.execute(statement).fetchall()

    def change(self, statement: str) -> None:
        """A statement that returns no rows, committed."""
        with self._connection() as connection, connection:
            connection.execute(statement)

    @property
    def is_free(self) -> bool:
        """Whether others can write: in SQLite one who is in a transaction keeps all others out."""
        if "://" in self.address:
            return True
        with closing(sqlite3.connect(self.address, timeout=0.2)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def _connection(self) -> closing[Any]:
        if "://" in self.address:
            return closing(psycopg.connect(self.address))
        return closing(sqlite3.connect(self.address, timeout=20))


def on_sqlite(folder: Path) -> Database:
    file = str(folder / "db.sqlite3")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    return Database(
        {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "OPTIONS": {"timeout": 20}},
        {"url": f"sqlite:///{file}", "connect_args": {"timeout": 20}},
        file,
    )


def on_postgres(server: PostgresServer) -> Database:
    name = f"t{uuid4().hex[:10]}"
    with closing(psycopg.connect(server.url(), autocommit=True)) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    place = {"NAME": name, "USER": "postgres", "HOST": "127.0.0.1", "PORT": server.port}
    return Database(
        {"ENGINE": "django.db.backends.postgresql", **place},
        {"url": server.url(name).replace("postgresql:", "postgresql+psycopg:")},
        server.url(name),
    )


class Lab:
    """A program of one framework on one database and one broker, and a look at what it left."""

    def __init__(self, framework: str, database: Database, messaging: Mapping[str, Any], folder: Path) -> None:
        self.framework = framework
        self.database = database
        self.messaging = messaging
        self._words = folder / f"stderr-{framework}"
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        settings = getattr(self.database, self.framework)
        command = [str(HERE / "outbox_program.py"), self.framework, json.dumps(settings), json.dumps(self.messaging)]
        path = os.pathsep.join([str(HERE), *sys.path])
        with self._words.open("ab") as words:
            self._program = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=os.environ | {"PYTHONPATH": path},
            )
        self.do("create")
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._open:
            os.kill(pid, 9)
        self._program.communicate(timeout=PATIENCE)

    def start(self, name: str, **arguments: Any) -> int:
        """Begin a task, and return its process id."""
        pid = self._ask(name, arguments)
        self._open.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """A task's exit code."""
        code = self._ask("wait", pid)
        self._open.discard(pid)
        return code

    def end(self, pid: int, number: int = 15) -> int:
        """A task's exit code after a signal."""
        os.kill(pid, number)
        return self.wait(pid)

    def freeze(self, pid: int) -> None:
        """Stop a task outside of its transactions."""

        def stopped() -> bool:
            os.kill(pid, signal.SIGSTOP)
            if free := self.database.is_free:
                return free
            os.kill(pid, signal.SIGCONT)
            return False

        assert until(stopped, PATIENCE), self.said()

    def run(self, name: str, **arguments: Any) -> int:
        return self.wait(self.start(name, **arguments))

    def do(self, name: str, **arguments: Any) -> None:
        """A task that has to succeed."""
        assert self.run(name, **arguments) == 0, self.said()

    def said(self) -> str:
        return self._words.read_text()

    def waiting(self) -> int:
        """How many messages are in the outbox and not parked."""
        return self._count(f"{OUTBOX[self.framework]} WHERE failed_at IS NULL")

    def parked(self) -> int:
        return self._count(f"{OUTBOX[self.framework]} WHERE failed_at IS NOT NULL")

    def effects(self) -> list[str]:
        """The message ids that handlers have written down."""
        return [row[0] for row in self.database.query("SELECT message_id FROM effects")]

    def empties(self) -> bool:
        """Whether everything in the outbox has gone, in time."""
        return until(lambda: self.waiting() == 0, PATIENCE)

    def arrived(self) -> list[tuple[str, int]]:
        """Key and number of all that the broker stores, in its order."""
        end = uuid4().hex
        found: list[tuple[str, int]] = []
        with MessagingService(MessagingConfig.from_mapping(self.messaging)) as service:
            service.publish("orders", {"end": end})
            with service.subscribe("orders", broadcast=True, start="earliest") as log:
                while True:
                    delivery = log.next(timeout=PATIENCE)
                    assert delivery is not None
                    if "end" not in delivery.payload:
                        found.append((delivery.payload["key"], delivery.payload["n"]))
                    elif delivery.payload["end"] == end:
                        return found

    def _count(self, what: str) -> int:
        return self.database.query(f"SELECT count(*) FROM {what}")[0][0]

    def _ask(self, name: str, arguments: Any) -> int:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self._program.stdin.flush()
        answer = self._program.stdout.readline()
        assert answer, self.said()
        return int(answer)


class Writer:
    """Orders of two keys, numbered on; remembers what was committed."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._next = 0
        self.written: list[tuple[str, int]] = []

    def write(self, count: int = 4, end: str = "commit") -> None:
        """In one transaction that ends so."""
        orders = [{"key": "ab"[n % 2], "n": n} for n in range(self._next, self._next + count)]
        self._next += count
        code = self._lab.run("write", messages=orders, end=end)
        assert code == (KILLED if end in ("before", "after") else 0), self._lab.said()
        if end in ("commit", "after"):
            self.written += [(order["key"], order["n"]) for order in orders]


def require_all_in_order(arrived: Iterable[tuple[str, int]], written: Iterable[tuple[str, int]]) -> None:
    """All that was committed and nothing else, the first time in order per key."""
    firsts = list(dict.fromkeys(arrived))
    assert sorted(firsts) == sorted(written)
    for key in "ab":
        numbers = [number for its, number in firsts if its == key]
        assert numbers == sorted(numbers)
