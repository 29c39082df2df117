"""Chart specs on their way from their bucket to the workers of a pod."""

from __future__ import annotations

from collections.abc import Callable

from runtime import log, pipes
from runtime.bucket import Bucket, Entry, View
from runtime.pool import Pool
from runtime.specs import KEY, SpecsError, decode

_LOG = log.get("specs")


class SpecsFeed:
    """Hands each revision that can be used to *pool*; one that cannot is logged, and the one before stays.

    *on_unusable* is called when there is none before: by the built-in specs, charts would lose what they
    rest on.
    """

    def __init__(
        self, bucket: Bucket, pool: Pool, window: int, on_unusable: Callable[[SpecsError], None]
    ) -> None:
        self._bucket, self._pool, self._window, self._on_unusable = bucket, pool, window, on_unusable
        self._revision: int | None = None

    async def start(self) -> View:
        """The pool has the present revision when this returns. Raises the TRANSIENT errors."""
        return await self._bucket.watch(self._on_entry)

    def _on_entry(self, entry: Entry) -> None:
        if entry.key != KEY:
            return
        try:
            if entry.value is not None:
                decode(entry.value, self._window)
        except SpecsError as error:
            _LOG.error("chart specs refused", spec_revision=entry.revision, cause=str(error))
            if self._revision is None:
                self._on_unusable(error)
            return
        self._revision = entry.revision
        _LOG.info("chart specs", spec_revision=entry.revision)
        self._pool.use_specs(pipes.Specs(entry.revision, entry.value or b""))
