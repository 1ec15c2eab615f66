"""When refreshes run: an APScheduler job by cron expression or interval, and once at the start.

Owns the schedule. Never refreshes by itself: the job is given. Two refreshes never overlap, and those missed
become one.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from feature_store.configuration import RefreshSettings
from feature_store.errors import SettingsError


def make_scheduler(settings: RefreshSettings, job: Callable[[], object]) -> BackgroundScheduler:
    """Return a scheduler that runs `job` at once when started, then as the settings say (cron in UTC).

    Stop it by `shutdown(wait=True)`: that lets a running refresh finish.

    Raises:
        SettingsError: the cron expression does not parse, or there is no schedule at all.
    """
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(
        job,
        make_trigger(settings),
        id="full_refresh",
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
        next_run_time=datetime.now(UTC),
    )
    return scheduler


def make_trigger(settings: RefreshSettings) -> BaseTrigger:
    """Return the trigger of full refreshes.

    Raises:
        SettingsError: the cron expression does not parse, or there is no schedule at all.
    """
    if settings.interval_seconds:
        return IntervalTrigger(seconds=settings.interval_seconds, timezone=UTC)
    if not settings.full_cron:
        raise SettingsError(
            "refresh.full_cron is empty and refresh.interval_seconds is 0, so nothing would be refreshed; "
            "set one of them, or use index-refresher once"
        )
    try:
        trigger = CronTrigger.from_crontab(settings.full_cron, timezone=UTC)
    except ValueError as error:
        raise SettingsError(
            f"refresh.full_cron = {settings.full_cron!r} is no cron expression: {error}; "
            "five fields, e.g. '*/5 * * * *'"
        ) from error
    if trigger.get_next_fire_time(None, datetime.now(UTC)) is None:
        raise SettingsError(f"refresh.full_cron = {settings.full_cron!r} names no day that ever comes")
    return trigger
