"""The Python code of a documentation page: found, and run as a reader would, from top to bottom.

A page with Python says in a comment where its code runs, once for each name::

    .. code runs on: memory, nats, kafka, both

or ``.. code runs under: pytest`` for a page that shows tests. The brokers' addresses come from the
environment, as in production. Python in a comment ``.. also run:`` is run, too, and not shown: it prepares
what the page assumes, and checks what the page says. It finds ``until`` (wait for a condition) and
``shown(language)``, the first example of another language on the page.

``python page_code.py PAGE`` runs the code of a page in this process.
"""

from __future__ import annotations

import re
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path
from typing import NamedTuple

from waiting import until

DOCS = Path(__file__).parents[2] / "docs"

CODE = ".. code-block:: "
SHOWN = CODE + "python"
HIDDEN = ".. also run:"
_RUNS = re.compile(r"^\.\. code runs (?:on|under): (.+)$", re.MULTILINE)
_OPTION = re.compile(r"\s+:\w[\w-]*:")


class Block(NamedTuple):
    """Python on a page.

    Attributes:
        line: The number of its first line on the page, from 1.
        code: Without the page's indentation.
        shown: Whether a reader sees it.
    """

    line: int
    code: str
    shown: bool


def pages() -> list[Path]:
    """Every page, by name."""
    built = {"_build", "_ext", "examples"}
    return sorted(page for page in DOCS.rglob("*.rst") if not built & set(page.relative_to(DOCS).parts))


def runs(page: Path) -> list[str]:
    """Where the page says that its code runs."""
    found = _RUNS.search(page.read_text())
    return [name.strip() for name in found[1].split(",")] if found else []


def blocks(page: Path) -> list[Block]:
    """The page's Python, shown or not, in order."""
    lines = page.read_text().splitlines()
    found = []
    for number, line in enumerate(lines):
        if line.strip() in (SHOWN, HIDDEN):
            found.append(_block(lines, number, shown=line.strip() == SHOWN))
    return found


def example(page: Path, language: str) -> str:
    """The page's first example of another language."""
    lines = page.read_text().splitlines()
    marker = next(number for number, line in enumerate(lines) if line.strip() == CODE + language)
    return _block(lines, marker, shown=True).code


def _block(lines: list[str], marker: int, *, shown: bool) -> Block:
    indent = len(lines[marker]) - len(lines[marker].lstrip())
    first = marker + 1
    while first < len(lines) and (not lines[first].strip() or _OPTION.match(lines[first])):
        first += 1
    last = first
    while last < len(lines) and (not lines[last].strip() or lines[last].startswith(" " * (indent + 1))):
        last += 1
    return Block(first + 1, textwrap.dedent("\n".join(lines[first:last])).rstrip(), shown)


def as_module(page: Path) -> str:
    """All of the page's code, each line where it stands on the page."""
    text = ""
    for block in blocks(page):
        text += "\n" * (block.line - 1 - text.count("\n")) + block.code + "\n"
    return text


def run(page: Path) -> int:
    """Run a page's code; 1 if a thread of it died of an exception."""
    deaths: list[str] = []

    def note(death: threading.ExceptHookArgs) -> None:
        deaths.append(f"{death.thread.name if death.thread else 'a thread'}: {death.exc_value!r}")

    threading.excepthook = note
    code = compile(as_module(page), str(page), "exec", dont_inherit=True)
    exec(code, {"__name__": "__main__", "until": until, "shown": partial(example, page)})
    for death in deaths:
        print(death, file=sys.stderr)  # noqa: T201
    return 1 if deaths else 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
