from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from nni_cssnas.base.signals import forget_alarm, raise_once

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM")


class End(KeyboardInterrupt):
    pass


class Closed:
    """Python drops what is raised here."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGALRM)}
    signal.signal(signal.SIGUSR1, lambda number, frame: raise_once(End()))
    yield
    forget_alarm()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finalizer_drops_is_raised_again() -> None:
    begun = time.monotonic()
    with pytest.raises(End):  # noqa: PT012
        Closed()
        time.sleep(5)
    assert time.monotonic() - begun < 4


def test_nothing_is_raised_while_it_is_handled() -> None:
    ended = False
    try:
        signal.raise_signal(signal.SIGUSR1)
    except End:
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0.3)  # the alarm comes
        try:
            raise ValueError("of the cleanup")
        except ValueError:
            signal.raise_signal(signal.SIGUSR1)
        ended = True
    assert ended
    time.sleep(0.3)  # no alarm is left
    with pytest.raises(End):
        signal.raise_signal(signal.SIGUSR1)


def test_a_forgotten_alarm_does_not_come() -> None:
    with pytest.raises(End):
        signal.raise_signal(signal.SIGUSR1)
    forget_alarm()
    time.sleep(0.3)
