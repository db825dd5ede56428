"""Signals that ask for the end."""

import signal
import threading

import pytest

from experiments.interruption import Interrupted, exit_code, noted

HEARD = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def before():
    """Handlers that raise; a test that runs in the background starts with SIGINT ignored."""

    def act(number, _):
        raise InterruptedError(number)

    kept = [signal.signal(number, act) for number in HEARD]
    yield act
    for number, handler in zip(HEARD, kept, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HEARD)
def test_the_first_is_noted_and_the_second_acts(number, before):
    with noted() as heard:
        assert heard == []
        signal.raise_signal(number)
        assert heard == [number]
        with pytest.raises(InterruptedError):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(n) for n in HEARD] == [before, before]


def test_afterwards_the_handlers_are_those_from_before(before):
    with pytest.raises(ZeroDivisionError), noted():
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in HEARD] == [before, before]


def test_outside_of_the_main_thread_nothing_is_heard(before):
    found = []

    def inside():
        with noted() as heard:
            found.append((heard, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [([], before)]


def test_exit_codes_are_those_of_shells():
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(Interrupted(signal.SIGTERM)) == 143
    assert "SIGTERM" in str(Interrupted(signal.SIGTERM))
