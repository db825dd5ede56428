"""Signals that ask for the end."""

import signal
import sys
import threading

import pytest

from experiments.interruption import Interrupted, ending, noted
from experiments.session import DivergedError

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        # A closed terminal is told of by the shell and by the system.
        signal.raise_signal(signal.SIGHUP)
        assert heard == [number]
        with pytest.raises(InterruptedError):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(n) for n in HEARD] == [before] * len(HEARD)


def test_afterwards_the_handlers_are_those_from_before(before):
    with pytest.raises(ZeroDivisionError), noted():
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in HEARD] == [before] * len(HEARD)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_is_ignored_stays_so(number):
    """As SIGHUP under nohup."""
    signal.signal(number, signal.SIG_IGN)
    with noted() as heard:
        signal.raise_signal(number)
        assert heard == []
    assert signal.getsignal(number) is signal.SIG_IGN


def test_outside_of_the_main_thread_nothing_is_heard(before):
    found = []

    def inside():
        with noted() as heard:
            found.append((heard, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [([], before)]


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)]
)
def test_an_interrupted_command_ends_as_in_shells(stop, code, capsys):
    @ending("half is kept")
    def command(one, *, two=2):
        assert (one, two) == (1, 2)
        raise stop

    with pytest.raises(SystemExit) as stopped:
        command(1)
    assert stopped.value.code == code
    assert capsys.readouterr().err == "\ninterrupted; half is kept\n"


def test_an_interruption_ends_as_such_without_a_terminal(monkeypatch):
    class Gone:
        def write(self, _):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(SystemExit) as stopped, ending():
        raise Interrupted(signal.SIGHUP)
    assert stopped.value.code == 129


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ImportError, DivergedError])
def test_what_stops_a_command_is_a_sentence(kind):
    @ending()
    def command():
        raise kind("it is so")

    with pytest.raises(SystemExit, match="error: it is so"):
        command()


def test_what_no_sentence_explains_is_not_hidden():
    with pytest.raises(TypeError), ending():
        raise TypeError


def test_signals_are_named():
    assert "SIGTERM" in str(Interrupted(signal.SIGTERM))
