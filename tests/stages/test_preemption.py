"""The first signal asks; a later one does what it always did."""

import os
import signal

import pytest

from gr_jax.stages import preemption


@pytest.fixture
def usual():
  """Collects the signals that arrive with their usual effect."""
  seen = []
  before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
  yield seen
  signal.signal(signal.SIGTERM, before)


def _send():
  os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_sent_twice_at_once_asks_once(usual):
  with preemption.watch() as stop_requested:
    assert not stop_requested()
    _send()
    _send()
    assert stop_requested()
  assert not usual


def test_a_later_signal_has_its_usual_effect(usual, monkeypatch):
  monkeypatch.setattr(preemption, "_SAME_SECONDS", 0.0)
  with preemption.watch() as stop_requested:
    _send()
    _send()
    assert stop_requested()
    assert usual == [signal.SIGTERM]


def test_afterwards_signals_are_as_before(usual):
  with preemption.watch():
    pass
  _send()
  assert usual == [signal.SIGTERM]
