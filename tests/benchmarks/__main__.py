"""Measure the SDK beside the clients that it wraps and beside its peers; see docs/performance.rst.

    python -m tests.benchmarks [--only NAMES] [--rounds R] [--messages N] [--results FILE] [--quick]

Prints what it finds; ``--results`` keeps the raw figures, of which ``python -m tests.benchmarks.report`` makes
tables and plots. On a machine that does something else meanwhile the figures are of that, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from . import machine, tables
from .parts import NAMES, Effort, measure
from .processes import PEERS


def main() -> int:
    given = _options()
    effort = Effort(
        given.peers,
        given.messages or (5_000 if given.quick else 50_000),
        given.rounds or (2 if given.quick else 5),
        given.quick,
    )
    found: dict[str, Any] = {
        "machine": machine.described(), "arguments": _told(given), "brokers": {}, "failures": {}, "parts": {},
    }  # fmt: skip
    begun = time.monotonic()
    for name in given.only:
        try:
            found["parts"][name] = measure(name, effort, found["brokers"])
        except Exception as error:  # one part must not cost the others
            traceback.print_exc()
            found["failures"][name] = repr(error)
        found["seconds"] = round(time.monotonic() - begun)
        if given.results is not None:
            given.results.parent.mkdir(parents=True, exist_ok=True)
            given.results.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        _say(tables.as_text(tables.of_part(name, found)))
    return 1 if found["failures"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=_chosen, default=NAMES, help="names, or how they begin, by comma: " + ", ".join(NAMES)
    )
    parser.add_argument("--rounds", type=int, help="turns of each contestant of a row (5; quick: 2)")
    parser.add_argument("--messages", type=int, help="messages of a turn, where they are fast (50000; quick: 5000)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep the raw figures in a file")
    parser.add_argument("--peers", type=_anywhere, metavar="PYTHON", default=PEERS, help="of the peers' environment")
    parser.add_argument("--quick", action="store_true", help="a look: less of each")
    return parser.parse_args()


def _anywhere(text: str) -> Path:
    """A path that contestants find too, which run elsewhere; a link stays one, or another Python would run."""
    return Path(text).absolute()


def _chosen(text: str) -> list[str]:
    beginnings = text.split(",")
    chosen = [name for name in NAMES if any(name == one or name.startswith(f"{one}-") for one in beginnings)]
    if not chosen:
        raise argparse.ArgumentTypeError(f"nothing is called {text}; there are {', '.join(NAMES)}")
    return chosen


def _told(given: argparse.Namespace) -> list[str]:
    """The arguments that choose what is measured; those that name files are of one machine."""
    named = {
        "only": ",".join(given.only) if given.only != NAMES else None,
        "rounds": given.rounds,
        "messages": given.messages,
    }
    arguments = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return [*arguments, "--quick"] if given.quick else arguments


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
