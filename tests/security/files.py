"""Files of secrets, as those who rotate them, or forget their modes, leave them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_VERSION_3 = 0x20080522
#: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root read all.
_READS_ALL = 1 << 1 | 1 << 2


def write(path: Path, text: str) -> Path:
    """Put a text into a file in one step, as whoever rotates secrets should."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)
    return path


@contextmanager
def unreadable(path: Path) -> Iterator[Path]:
    """A file that nobody may read; threads that start meanwhile may not, either, also those of root."""
    mode = path.stat().st_mode
    path.chmod(0)
    kept = _capabilities(None)
    _capabilities([kept[0] & ~_READS_ALL, *kept[1:]])
    try:
        yield path
    finally:
        _capabilities(kept)
        path.chmod(mode)


def _capabilities(new: Sequence[int] | None) -> list[int]:
    """This thread's capabilities (capabilities(7)), which become these: first the effective ones."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)(*(new or ()))
    if (libc.capget if new is None else libc.capset)(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capabilities")
    return list(data)
