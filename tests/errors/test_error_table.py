"""Each row of the table of errors, met on a real broker or a dead port: class, code, words, and in time."""

from __future__ import annotations

from importlib import import_module

from error_kit import PROVOKED

from incident_messaging import (
    ConfigurationError,
    ConnectionFailed,
    MessagingError,
    Timeout,
    errors,
)

#: Where the rows are.
MODULES = (
    "test_connecting_errors", "test_publishing_errors", "test_consuming_errors", "test_unavailable_errors",
)  # fmt: skip


def test_every_row_of_the_table_is_provoked() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MessagingError)]
    table = {(kind, code) for kind in classes for code in kind.codes}
    for module in MODULES:
        import_module(module)
    assert table == PROVOKED


def test_the_tree_is_also_that_of_the_built_in_errors() -> None:
    assert issubclass(Timeout, TimeoutError)
    assert issubclass(ConnectionFailed, ConnectionError)
    assert issubclass(ConfigurationError, ValueError)
