"""Many publishes that are waited for together: the outcomes while they come, and the result."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import attrs

from incident_messaging.errors import MessagingError, PublishFailed
from incident_messaging.publishing.publication import Publication, PublishReceipt


@attrs.frozen(kw_only=True)
class BatchResult:
    """What became of a batch; its ``len()`` is ``published``.

    Attributes:
        published: How many messages were acknowledged.
        failures: The error of each that was not, by its place in the batch.
        receipts: If asked for, a receipt for each place (``None`` for a failure), else ``None``.
    """

    published: int
    failures: dict[int, MessagingError]
    receipts: list[PublishReceipt | None] | None = None

    def __len__(self) -> int:
        return self.published


class Batch:
    """The outcomes of a batch while it runs."""

    def __init__(self, *, receipts: bool, max_failures: int) -> None:
        self._changed = threading.Condition()
        self._receipts: dict[int, PublishReceipt] | None = {} if receipts else None
        self._max_failures = max_failures
        self._failures: dict[int, MessagingError] = {}
        self._read = 0
        self._ended = 0
        self._published = 0

    @property
    def failed(self) -> bool:
        """Whether so many failed that no more is read."""
        return len(self._failures) >= self._max_failures

    def next_index(self) -> int:
        """The place of the next message; from now on its end is waited for."""
        self._read += 1
        return self._read - 1

    def finished(self, publications: Sequence[Publication]) -> None:
        """These have ended."""
        failures = {one.index: error for one in publications if (error := one.failure()) is not None}
        receipts = {}
        if self._receipts is not None:
            receipts = {one.index: one.receipt() for one in publications if one.index not in failures}
        with self._changed:
            self._failures.update(failures)
            self._published += len(publications) - len(failures)
            if self._receipts is not None:
                self._receipts.update(receipts)
            self._end(len(publications))

    def fail(self, index: int, error: MessagingError) -> None:
        """A message failed, before or after it was handed over."""
        with self._changed:
            self._failures[index] = error
            self._end()

    def drop(self, messages: int) -> None:
        """So many were read and perhaps never handed over: something else went wrong, or Ctrl-C."""
        with self._changed:
            self._end(messages)

    def nothing(self, index: int, receipt: PublishReceipt) -> None:
        """A message was not sent, and that is as it should be: messaging is disabled."""
        with self._changed:
            if self._receipts is not None:
                self._receipts[index] = receipt
            self._end()

    def wait(self) -> None:
        """Wait for the end of all that was read; each has its own deadline."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended >= self._read)

    def result(self) -> BatchResult:
        """What became of all that was read, once it has ended.

        Raises:
            PublishFailed: Some failed; ``result`` tells which.
        """
        receipts = None
        if self._receipts is not None:
            receipts = [self._receipts.get(index) for index in range(self._read)]
        result = BatchResult(
            published=self._published, failures=dict(sorted(self._failures.items())), receipts=receipts
        )
        if result.failures:
            index, first = next(iter(result.failures.items()))
            raise PublishFailed(
                f"{len(result.failures)} of {self._read} messages failed, the first at {index}: {first}",
                code="batch",
                result=result,
                backend=first.backend,
                topic=first.topic,
            ) from first
        return result

    def _end(self, messages: int = 1) -> None:
        self._ended += messages
        if self._ended >= self._read:
            self._changed.notify_all()
