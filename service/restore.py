"""A whole restore, in its order: verify, plan, stage, audit, replace, and look at what came of it.

Invariant: nothing is changed unless it was ordered, and nothing is closed before the backup was
found whole and sound.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from redis.exceptions import RedisError

from service import migrations
from service.auditor import audit
from service.backup_files import BackupRefusedError, read_manifest, verify
from service.handshake import Handshake, Opened
from service.handshakes import make_handshakes
from service.ledger import UNAVAILABLE
from service.looking import CANNOT_TELL, OnProgress, count
from service.reconciler import reconcile
from service.redis_store import RedisStore
from service.resources import sql_directory
from service.restore_plan import Plan, make_plan
from service.restoring import Connect, MakeHandshakes, Restoration, Result, audit_staged, stage
from service.settings import Settings
from service.violations import AuditReport

REFUSED = 1


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore came to; without `results` it was not ordered.

    `audit` and `reconcile` are what these commands say afterwards: their verdict, `cannot_tell`, or
    nothing where they did not run.
    """

    plan: Plan
    results: Mapping[int, Result] = field(default_factory=dict)
    audit: str = ""
    reconcile: str = ""

    @property
    def exit_code(self) -> int:
        """0 done, or a plan; 1 a partition stays closed, or something is wrong; 2 cannot tell."""
        if not self.results:
            return 0
        results = self.results.values()
        if "cannot_tell" in (self.audit, self.reconcile) or any(
            isinstance(result, str) for result in results
        ):
            return CANNOT_TELL
        opened = all(isinstance(result, Opened) for result in results)
        # An event that was frozen in the backup is frozen again: that is what was asked for.
        alike = self.reconcile in ("clean", "frozen")
        return 0 if opened and self.audit == "holds" and alike else REFUSED


class Restore:
    """One restore. `settings` name both stores."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        *,
        even_if_violated: bool,
        on_progress: OnProgress | None,
    ) -> None:
        """Take what it works with. `even_if_violated`: what its audit says is no obstacle."""
        assert settings.own_redis_url is not None
        assert settings.postgresql_url is not None
        self._settings = settings
        self._redis_url = settings.own_redis_url
        self._postgresql_url = settings.postgresql_url
        self._directory = directory
        self._even_if_violated = even_if_violated
        self._on_progress = on_progress

    async def run(self, *, apply: bool) -> Restored:
        """Verify and plan; restore if that is ordered.

        Raises BackupRefusedError, CannotReplaceError, and what the stores' clients raise.
        """
        manifest = read_manifest(self._directory)
        verified = self._counter(manifest.size)
        await asyncio.to_thread(verify, self._directory, manifest, verified)
        redis = RedisStore(self._redis_url)
        try:
            plan = await make_plan(
                manifest,
                redis,
                self._postgresql_url,
                migrations=_migrations(),
                partitions=self._settings.partitions,
            )
            return await self._apply(plan, redis) if apply else Restored(plan)
        finally:
            await redis.aclose()

    async def _apply(self, plan: Plan, redis: RedisStore) -> Restored:
        if not plan.has_schema:
            await self._make_tables()
        manifest = plan.manifest
        rows = self._counter(sum(table.rows for table in manifest.tables))
        async with await stage(self._directory, manifest, self._postgresql_url, rows) as staged:
            self._insist(await audit_staged(manifest, staged, self._on_progress))
            results = await Restoration(manifest, staged, self._handshakes(redis)).run()
        audited = await _verdict(audit(self._postgresql_url, on_progress=self._on_progress))
        if not all(isinstance(result, Opened) for result in results.values()):
            return Restored(plan, results, audited)
        compared = reconcile(self._redis_url, self._postgresql_url, on_progress=self._on_progress)
        return Restored(plan, results, audited, await _verdict(compared))

    def _handshakes(self, redis: RedisStore) -> MakeHandshakes:
        def make(connect: Connect | None) -> dict[int, Handshake]:
            return make_handshakes(self._settings, redis, "restore", connect=connect)

        return make

    async def _make_tables(self) -> None:
        try:
            await migrations.migrate_up(self._postgresql_url, sql_directory())
        except migrations.MigrationError as error:
            raise BackupRefusedError(str(error)) from None

    def _insist(self, report: AuditReport) -> None:
        """Raise BackupRefusedError for a backup that is whole and does not hold."""
        if report.verdict == "holds" or self._even_if_violated:
            return
        first = report.violations.kept[0]
        msg = (
            f"the backup is whole, but what it has on record does not hold:"
            f" {count(report.violations.number, 'violation')}, the first of partition"
            f" {first.partition} at seq {first.seq or '-'}, {first.rule}: {first.says};"
            " --even-if-violated restores it all the same"
        )
        raise BackupRefusedError(msg)

    def _counter(self, total: int) -> Callable[[int], None]:
        """Return what is told of bytes or rows, and moves the bar."""
        done = 0

        def count_on(number: int) -> None:
            nonlocal done
            done += number
            if self._on_progress is not None:
                self._on_progress(done, max(1, total))

        return count_on


class _HasVerdict(Protocol):
    @property
    def verdict(self) -> str: ...


async def _verdict(looking: Awaitable[_HasVerdict]) -> str:
    try:
        return (await looking).verdict
    except (RedisError, *UNAVAILABLE):
        return "cannot_tell"


def _migrations() -> list[str]:
    """Return the versions of this release's migrations."""
    return sorted(file.name.partition("_")[0] for file in sql_directory().glob("*.sql"))
