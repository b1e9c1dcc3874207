"""How the last messages of a subscription ended, and when that is enough of it."""

from __future__ import annotations

import pytest

from incident_messaging import ConfigurationError, RetryPolicy
from incident_messaging.consuming.breaker import Breaker


def outcomes(breaker: Breaker, text: str) -> str:
    """What the breaker said to each: ``+`` was handled, ``-`` is to be given up."""
    said = ""
    for outcome in text:
        if outcome == "+":
            breaker.handled(1)
            said += "."
        else:
            said += "!" if breaker.breaks() else "."
    return said


@pytest.mark.parametrize(
    ("share", "given", "said"),
    [
        (0.5, "----------", "...!!!!!!!"),  # not before the window is full
        (0.5, "++++--", ".....!"),
        (0.5, "-+++-+++-+++", "............"),
        (0.75, "--++--++", "........"),
        (0.75, "--++---", "......!"),
        (1.0, "+----", "....!"),
        (0.5, "----++++", "...!...."),
        (0.5, "++--+++-", "...!...!"),  # once broken, broken for good
    ],
)
def test_a_window_of_four(share: float, given: str, said: str) -> None:
    assert outcomes(Breaker(RetryPolicy(breaker_share=share, breaker_window=4)), given) == said


def test_off_by_default() -> None:
    assert "!" not in outcomes(Breaker(RetryPolicy()), "-" * 1000)


@pytest.mark.parametrize("share", [0, -1, 1.5, "half"])
def test_a_share_is_above_nothing_and_at_most_all(share: object) -> None:
    with pytest.raises(ConfigurationError, match="breaker_share"):
        RetryPolicy(breaker_share=share)  # type: ignore[arg-type]
