"""What the brokers of this package raise."""

from __future__ import annotations

__all__ = ["HOW_TO_GET", "BrokerError"]

HOW_TO_GET = "pip install 'incident-messaging[brokers]'"


class BrokerError(RuntimeError):
    """A broker could not be had, started, stopped or wiped.

    The text says what was tried and what to do; where a process ran, it ends with the tail of its log.
    """
