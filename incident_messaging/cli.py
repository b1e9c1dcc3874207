"""The command ``incident-messaging``; it needs the extra ``cli`` (click, rich), and says so without."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["main"]


class _Stdout(io.FileIO):
    """What is below ``sys.stdout``, which remembers why it took no more.

    Attributes:
        trouble: The error of its last write, if that failed.
    """

    trouble: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, as many as it takes."""
        try:
            return super().write(data)
        except OSError as error:
            self.trouble = error
            raise


def main() -> None:
    """Run the command; its exit code is 0 only if all went well."""
    stdout = _standard_streams()
    try:
        from incident_messaging.commands import commands

        commands()
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        if package not in ("click", "rich"):
            raise
        sys.exit(f"incident-messaging needs {package}; get it by: pip install 'incident-messaging[cli]'")
    except OSError as error:
        if error is not stdout.trouble:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # for what the interpreter flushes at its end
        sys.exit(f"Error: stdout: {error.strerror}")


def _standard_streams() -> _Stdout:
    """Stdout; and what the caller has closed is nowhere: else a connection would get its number, and be printed to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # those below it are open, so it is the lowest that is free, and the one that is opened
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    stdout = _Stdout(1, "w", closefd=False)
    before = sys.stdout or sys.stderr
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(stdout), before.encoding, before.errors, line_buffering=stdout.isatty()
    )
    return stdout


if __name__ == "__main__":
    main()
