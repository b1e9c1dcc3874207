"""What a group's commit says beside its offset: how far messages may have been started. Pure.

Kafka keeps a text with each committed offset (``offset.metadata.max.bytes``, 4,096 bytes by default). Nobody
is told there that a message was delivered before; so the owner of a partition writes down up to where it may
hand out, and a text that still says so when the next owner reads it is that of a process that died
(``docs/decisions/0010-messages-that-kill.rst``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

_OURS = "incident-messaging"
#: Marks that fit with ease; as suspects are started one at a time there is seldom more than one.
_MOST_STARTS = 100


@attrs.frozen
class Note:
    """The text of a commit.

    Attributes:
        owner: Who writes it; a consumer that lost a partition and gets it back has not died.
        until: The owner hands out nothing from this offset on; 0 when it has left and given everything back.
        suspects: What was delivered below this offset was in the hands of an earlier owner that died.
        starts: How often a handler was started on a suspect that is not settled, by offset.
    """

    owner: str = ""
    until: int = 0
    suspects: int = 0
    starts: Mapping[int, int] = attrs.field(factory=dict)

    def doubtful(self, owner: str) -> int:
        """To the next owner everything below this offset is a suspect."""
        return self.suspects if owner == self.owner else max(self.until, self.suspects)

    def text(self) -> str:
        """The note as it is committed; empty when there is nothing to say."""
        starts = {str(offset): self.starts[offset] for offset in sorted(self.starts)[:_MOST_STARTS]}
        fields: dict[str, Any] = {"until": self.until, "suspects": self.suspects, "starts": starts}
        said = {name: value for name, value in fields.items() if value}
        if self.until:
            said["owner"] = self.owner
        return json.dumps({_OURS: said}, separators=(",", ":")) if said else ""


#: The note of a group that is new, or was left in order.
CLEAN = Note()


def read(text: str | None) -> Note:
    """The note of a commit; foreign text, and none, say nothing."""
    try:
        said = json.loads(text or "{}")[_OURS]
        starts = {int(offset): int(count) for offset, count in said.get("starts", {}).items()}
        return Note(str(said.get("owner", "")), int(said.get("until", 0)), int(said.get("suspects", 0)), starts)
    except (ValueError, TypeError, KeyError, AttributeError):
        return CLEAN
