"""How far the publishing of a file has come, kept beside it over as many runs as that takes."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import attrs
import click

from incident_messaging.publishing.publisher import Message

__all__ = ["Line", "Progress"]

#: Seconds between two writes of the progress file.
_SAVE_EVERY = 0.25


@attrs.frozen(kw_only=True)
class Line:
    """A line as it is to be published.

    Attributes:
        number: From 1.
        raw: Its bytes, and those before it that are behind the line published before.
        mark: What tells it from every other line of every run.
        message: What to publish.
    """

    number: int
    raw: bytes
    mark: str
    message: Message


def _digest(file: Path, size: int) -> Any:
    """Of so many bytes of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as lines:
        while size and (part := lines.read(min(size, 1 << 20))):
            digest.update(part)
            size -= len(part)
    return digest


@attrs.frozen
class _Place:
    """A line's number, where it ends, and a digest of the file up to there."""

    line: int = 0
    offset: int = 0
    digest: Any = attrs.field(factory=hashlib.sha256)


class Progress:
    """Up to where a file is published, kept in a file beside it until all is.

    Guarantees: while lines pass it is written every `_SAVE_EVERY`, whole or not at all. What is published already is
    only gone on from where it is unchanged.
    """

    def __init__(self, file: Path, target: str) -> None:
        self._path = file.with_name(f"{file.name}.progress")
        self._target = target
        self._run = uuid.uuid4()
        self._saved = 0.0
        self._at = _Place()
        #: The marks of lines behind that, which are published.
        self.beyond: set[str] = set()
        if self._path.exists():
            self._load(file)

    def mark(self, number: int, text: bytes) -> str:
        """What tells a line from every other line of every run."""
        return str(uuid.uuid5(self._run, f"{number}:{text.strip().decode('utf-8', 'backslashreplace')}"))

    @property
    def line(self) -> int:
        """The last line that is published, as all before it."""
        return self._at.line

    @property
    def offset(self) -> int:
        """Where it ends."""
        return self._at.offset

    def passed(self, line: Line) -> None:
        """A line is published, and so are all before it."""
        digest = self._at.digest.copy()
        digest.update(line.raw)
        self._at = _Place(line.number, self.offset + len(line.raw), digest)  # at once: Ctrl-C may come anywhere
        if time.monotonic() > self._saved + _SAVE_EVERY:
            self.save()

    def line_by_line(self, lines: list[Line]) -> None:
        """These are published, though not all before them."""
        self.beyond.update(line.mark for line in lines)
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        place = {
            "run": str(self._run), "target": self._target, "line": self.line, "offset": self.offset,
            "sha256": self._at.digest.hexdigest(), "beyond": sorted(self.beyond),
        }  # fmt: skip
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(json.dumps(place))
            os.replace(new, self._path)
        except OSError as error:
            words = f"{self._path} cannot be written: {error.strerror}; put the file where you may write"
            raise click.ClickException(words) from error
        self._saved = time.monotonic()

    def end(self) -> None:
        """All is published."""
        self._path.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        try:
            place = json.loads(self._path.read_text())
            self._run, target, digest = uuid.UUID(place["run"]), place["target"], place["sha256"]
            line, offset, self.beyond = int(place["line"]), int(place["offset"]), set(place["beyond"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._refused("cannot be read") from error
        if target != self._target and not line and not self.beyond:
            return  # nothing came of that run
        if target != self._target:
            raise self._refused(f"is of a run with another TOPIC, broker or topic_prefix, up to line {line:,}")
        self._at = _Place(line, offset, _digest(file, offset))
        if self._at.digest.hexdigest() != digest:
            raise self._refused(f"is of a run up to line {line:,}, and {file.name} has changed before that")

    def _refused(self, words: str) -> click.ClickException:
        return click.ClickException(f"{self._path} {words}; delete it to publish from the first line on")
