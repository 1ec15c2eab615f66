"""When refreshes run."""

import threading
import time
from datetime import UTC, datetime

import pytest

from feature_store.configuration import RefreshSettings
from feature_store.errors import SettingsError
from index_refresher.scheduling import make_scheduler, make_trigger


def test_cron_is_in_utc() -> None:
    trigger = make_trigger(RefreshSettings(full_cron="30 4 * * *"))
    now = datetime(2024, 5, 6, 7, 0, tzinfo=UTC)
    assert trigger.get_next_fire_time(None, now) == datetime(2024, 5, 7, 4, 30, tzinfo=UTC)


def test_an_interval_goes_before_cron() -> None:
    trigger = make_trigger(RefreshSettings(interval_seconds=2.5))
    now = datetime(2024, 5, 6, 7, 0, tzinfo=UTC)
    following = trigger.get_next_fire_time(now, now)
    assert (following - now).total_seconds() == 2.5


@pytest.mark.parametrize("cron", ["often", "* * * *", "61 * * * *", "* * * * * *", "0 0 30 2 *"])
def test_a_cron_expression_that_names_no_time_is_refused_by_name(cron: str) -> None:
    with pytest.raises(SettingsError, match=r"refresh\.full_cron = "):
        make_trigger(RefreshSettings(full_cron=cron))


def test_no_schedule_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match="nothing would be refreshed"):
        make_trigger(RefreshSettings(full_cron=""))


def test_runs_at_once_then_again_and_never_twice_at_a_time() -> None:
    """The job takes four intervals: those missed become one, and shutting down waits for the last."""
    running = threading.Lock()
    began, ended = [], []

    def job() -> None:
        assert running.acquire(blocking=False)
        began.append(time.monotonic())
        time.sleep(0.2)
        ended.append(time.monotonic())
        running.release()

    scheduler = make_scheduler(RefreshSettings(interval_seconds=0.05), job)
    started = time.monotonic()
    scheduler.start()
    while len(began) < 3:
        time.sleep(0.01)
    scheduler.shutdown(wait=True)
    assert began[0] - started < 0.15
    assert len(ended) == len(began)
    assert all(later > earlier for later, earlier in zip(began[1:], ended, strict=False))


def test_the_first_refresh_does_not_wait_for_cron() -> None:
    ran = threading.Event()
    scheduler = make_scheduler(RefreshSettings(full_cron="0 0 29 2 *"), ran.set)
    scheduler.start()
    assert ran.wait(10)
    scheduler.shutdown(wait=True)
