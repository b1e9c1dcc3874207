"""A child process that must not outlive this one, whichever way this one ends.

``PR_SET_PDEATHSIG`` is no help: it fires when the *thread* that started the child ends. ``atexit`` alone does
not run after SIGKILL. A pipe does it: a shell of one line reads from it; the end of file can only mean that
this process is gone, and the shell kills the broker and removes its data. A line in the pipe dismisses the
shell.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import weakref
from pathlib import Path

__all__ = ["Guard"]

_SCRIPT = 'read -r line || { kill -KILL "$1" 2>/dev/null; [ -z "$2" ] || { sleep 0.2; rm -rf "$2"; }; }'


class Guard:
    """Kills process ``pid`` and deletes ``folder`` (if one is given) when this Python process is gone."""

    def __init__(self, pid: int, folder: Path | None) -> None:
        command = ["/bin/sh", "-c", _SCRIPT, "incident-messaging-guard", str(pid), str(folder or "")]
        # Its own session: a Ctrl-C in the terminal is for this process, not for its brokers and their guards.
        self._shell = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        _guards.add(self)

    @property
    def pid(self) -> int:
        """The process id of the guarding shell."""
        return self._shell.pid

    def dismiss(self) -> None:
        """End the guard without harm to the process it watched; called when that one has been reaped."""
        _guards.discard(self)
        pipe = self._shell.stdin
        assert pipe is not None
        if not pipe.closed:  # it is in a forked child, which must not dismiss its parent's guard
            with contextlib.suppress(BrokenPipeError), pipe:
                pipe.write(b"\n")
        self._shell.wait()

    def forget(self) -> None:
        """Close this process's end of the pipe: in a forked child, which is not the one to be watched."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _forget_all() -> None:
    for guard in list(_guards):
        guard.forget()
    _guards.clear()


os.register_at_fork(after_in_child=_forget_all)
