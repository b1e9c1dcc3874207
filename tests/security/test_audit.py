"""The audit of dependencies: silence of the index is not taken for an answer."""

from __future__ import annotations

from typing import Any

import pytest
from audit import verdict

OWN = {"name": "incident-messaging", "skip_reason": "distribution marked as editable"}
FINE = {"name": "attrs", "version": "25.1", "vulns": []}
BAD = {"name": "urllib", "version": "1.0", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
SILENT = {"name": "cattrs", "skip_reason": "Dependency not found and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "strict", "code", "words"),
    [
        ([OWN, FINE], 0, 0, "1 packages, none known to be vulnerable"),
        ([OWN, FINE, BAD], 1, 1, "urllib 1.0: PYSEC-1, PYSEC-2"),
        ([OWN, BAD, SILENT], 1, 1, "urllib"),
        ([OWN, FINE, SILENT], 2, 2, "INCOMPLETE: nothing is said about cattrs"),
        ([OWN, SILENT, SILENT], 2, 0, "NOT DONE"),
        ([], 2, 0, "NOT DONE"),
    ],
)
def test_what_is_made_of_a_report(packages: list[Any], strict: int, code: int, words: str) -> None:
    for must_answer, expected in ((True, strict), (False, code)):
        found, lines = verdict({"dependencies": packages}, must_answer=must_answer)
        assert (found, lines[0].startswith(words)) == (expected, True)
