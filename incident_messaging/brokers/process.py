"""The life of one broker process: start, stop, kill, freeze, and never left behind."""

from __future__ import annotations

import abc
import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from incident_messaging.brokers.errors import BrokerError
from incident_messaging.brokers.guard import Guard
from incident_messaging.brokers.ports import HOST, free_port

__all__ = ["BrokerProcess", "Startable"]

_TAIL_LINES = 25


class Startable(abc.ABC):
    """What starts on entry of a ``with`` block and is closed on exit."""

    @abc.abstractmethod
    def start(self, timeout: float = 60.0) -> None:
        """Start, and return when it is ready for clients."""

    @abc.abstractmethod
    def close(self) -> None:
        """End for good."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BrokerProcess(Startable):
    """A broker as a child process of this one, on one loopback port that it keeps over restarts.

    Its verbs are meant for one thread at a time. As a context manager it starts on entry, is closed on exit.
    The process dies with this one, also when this one is killed.
    """

    kind: str
    """The broker's name in texts."""

    poll_secs = 0.02
    """How often a starting broker is asked whether it is ready."""

    def __init__(self, port: int | None, store_dir: str | os.PathLike[str] | None) -> None:
        self.port = free_port() if port is None else port
        self._owns_folder = store_dir is None
        self.folder = (
            Path(tempfile.mkdtemp(prefix=f"incident-messaging-{self.kind.lower()}-"))
            if store_dir is None
            else Path(store_dir).absolute()
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._frozen = False
        self._owner_pid = os.getpid()
        atexit.register(self.close)

    # -- what a broker has to say --

    @abc.abstractmethod
    def _prepare(self) -> Sequence[str]:
        """Write what the server needs before a start and return its command line."""

    @abc.abstractmethod
    def _is_ready(self) -> bool:
        """Whether clients can work with the server now; one short look."""

    # -- state --

    @property
    def address(self) -> str:
        """Where clients connect, as ``127.0.0.1:PORT``."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id of the server, None while there is none."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the server's process exists (a frozen one does); never in a forked child, which has none."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        self._bury()
        return False

    @property
    def data_dir(self) -> Path:
        """Where the server keeps its data."""
        return self.folder / "data"

    @property
    def log_file(self) -> Path:
        """What the server wrote to its standard output and error."""
        return self.folder / "server.log"

    # -- verbs --

    def start(self, timeout: float = 60.0) -> None:
        """Start the server and return when it is ready for clients; one that runs already is left as it is.

        Raises:
            BrokerError: the server ended, or was not ready within ``timeout`` seconds (it is killed then).
        """
        self.launch()
        self.wait_ready(timeout)

    def launch(self) -> None:
        """Start the server's process without waiting (for clusters, whose nodes wait for each other)."""
        if self.running:
            return
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = self._prepare()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self._guard = Guard(self._process.pid, self.folder if self._owns_folder else None)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return when the launched server is ready for clients.

        Raises:
            BrokerError: the server ended, or was not ready within ``timeout`` seconds (it is killed then).
        """
        deadline = time.monotonic() + timeout
        try:
            while not self._is_ready():
                if not self.running:
                    raise BrokerError(f"{self.kind} on {self.address} ended at its start{self._tail()}")
                if time.monotonic() > deadline:
                    what = f"{self.kind} on {self.address} was not ready within {timeout:g} s"
                    raise BrokerError(f"{what}{self._tail()}")
                time.sleep(self.poll_secs)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = 10.0) -> None:
        """Ask the server to end, kill it after ``timeout`` seconds, and return when it is gone."""
        self.terminate()
        self.wait_end(timeout)

    def terminate(self) -> None:
        """Ask the server to end (SIGTERM; thawed if frozen) without waiting; harmless if it has."""
        if self.running:
            self.thaw()
            self._signal(signal.SIGTERM)

    def wait_end(self, timeout: float = 10.0) -> None:
        """Return when the server has ended; kill it after ``timeout`` seconds."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            self.kill()

    def kill(self) -> None:
        """End the server at once (SIGKILL), frozen or not, and return when it is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._bury()

    def freeze(self) -> None:
        """Stop the server's clock (SIGSTOP): it keeps its connections and answers nothing from now on.

        Raises:
            BrokerError: it does not run.
        """
        if not self._frozen:
            self._signal(signal.SIGSTOP)
            self._frozen = True
            if self._process is not None:  # its threads stop one by one, and go on answering until then
                os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let a frozen server go on; harmless on any other."""
        if self._frozen:
            self._signal(signal.SIGCONT)
            self._frozen = False

    def restart(self, timeout: float = 60.0) -> None:
        """Start again on the same port with the same data; a running server is stopped first.

        Raises:
            BrokerError: as ``start``.
        """
        self.stop()
        self.start(timeout)

    def wipe(self) -> None:
        """Delete the server's data.

        Raises:
            BrokerError: the server runs.
        """
        if self.running:
            raise BrokerError(f"{self.kind} on {self.address} runs: stop or kill it before wipe()")
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def close(self) -> None:
        """End the server for good. Data in a folder of its own is deleted, data in ``store_dir`` stays.

        In a forked child this does nothing: the server belongs to the process that started it.
        """
        if os.getpid() != self._owner_pid:
            return
        atexit.unregister(self.close)
        if self._owns_folder:
            self.kill()  # what is to be deleted needs no tidy end
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} {'running' if self.running else 'stopped'}>"

    # -- inside --

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or not self.running:
            raise BrokerError(f"{self.kind} on {self.address} does not run")
        self._process.send_signal(number)

    def _bury(self) -> None:
        """Reap the process that ended and dismiss its guard, before its pid can belong to somebody else."""
        process, guard = self._process, self._guard
        self._process, self._guard, self._frozen = None, None, False
        if process is not None:
            process.wait()
        if guard is not None:
            guard.dismiss()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_file.read_text("utf-8", "replace").splitlines()
            return "\n".join(["; the end of its log:", *lines[-_TAIL_LINES:]])
        return ""
