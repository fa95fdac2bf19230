"""Orderly stops: SIGTERM (a preempted machine) and Ctrl-C."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_SECONDS = 1.0


class Stopped(Exception):
  """Work ended on request, saved; the same command goes on from there."""


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
  """Turns the first SIGTERM or SIGINT of a block into a request to stop.

  A later one has its usual effect; within a second it counts as the same, for
  `timeout` and others signal a process and its group. Outside the main thread,
  where Python delivers no signals, nothing is watched.

  Yields:
    A function that says whether a stop was requested.
  """
  requested = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield requested.is_set
    return
  usual = {number: signal.getsignal(number) for number in _SIGNALS}

  def restore() -> None:
    for number, handler in usual.items():
      signal.signal(number, handler)

  def request(number: int, _) -> None:
    nonlocal asked
    if not requested.is_set():
      asked = time.monotonic()
      logging.info("%s: stopping soon.", signal.Signals(number).name)
      requested.set()
    elif time.monotonic() - asked > _SAME_SECONDS:
      restore()
      signal.raise_signal(number)

  asked = 0.0

  for number in _SIGNALS:
    signal.signal(number, request)
  try:
    yield requested.is_set
  finally:
    restore()
