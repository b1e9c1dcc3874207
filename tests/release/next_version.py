"""The version after this one, as a process: the package with a field and an event more, and a new wire version.

Run as a program, it does what it is told in lines of JSON, ``[what, arguments]``, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "incident_messaging"

#: What a minor version may change, in the package's own text: an event, a field without which the reader does, the
#: envelope's version.
CHANGES = {
    "envelope.py": [('VERSION: Final = "1.0"', 'VERSION: Final = "1.1"')],
    "events.py": [
        (
            "    title: str = attrs.field(converter=_plain, validator=_is_text)\n",
            "    title: str = attrs.field(converter=_plain, validator=_is_text)\n"
            '    region: str = attrs.field(default="", converter=_plain, validator=_is_text)\n',
        ),
        (
            "# With slots, because",
            "@attrs.frozen(slots=False)\nclass IncidentReopened(IncidentEvent):\n"
            '    """It was not resolved after all."""\n\n    _tag: ClassVar[str] = "Reopened"\n'
            "    reason: str = attrs.field(converter=_plain, validator=_is_text)\n\n\n# With slots, because",
        ),
        ("        AlertCorrelated,\n    )\n}", "        AlertCorrelated,\n        IncidentReopened,\n    )\n}"),
    ],
}


def make(folder: Path) -> None:
    """Put the changed package into a folder."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    for name, changes in CHANGES.items():
        path = folder / PACKAGE.name / name
        text = path.read_text("utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has changed: {old!r}"
            text = text.replace(old, new)
        path.write_text(text, "utf-8")


class NextVersion:
    """The process, from the other side."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        make(folder)
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(settings)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        where = Path(self.ask("where"))
        assert PACKAGE not in where.parents, f"it is this version: {where}"
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(20.0) == 0

    def tell(self, what: str, *arguments: Any) -> None:
        """Have something done, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()

    def has_answered(self) -> bool:
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def answer(self) -> Any:
        """What came of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it has died"
        return json.loads(line)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have something done, and what came of it."""
        self.tell(what, *arguments)
        return self.answer()


def main(settings: dict[str, Any]) -> None:
    import version_deeds

    with version_deeds.service(settings) as service:
        for line in sys.stdin:
            what, arguments = json.loads(line)
            print(json.dumps(getattr(version_deeds, what)(service, *arguments)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
