"""Scalars by step, to JSON lines and, where installed, to TensorBoard."""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping

from absl import logging


class MetricWriter:
  """Appends scalars to `<folder>/metrics.jsonl` and to TensorBoard events.

  TensorBoard events are written by clu's `SummaryWriter`, which needs
  tensorflow; without either the JSON lines are all there is.
  """

  def __init__(self, folder: str | os.PathLike[str], *, start_step: int = 0):
    """Opens the files, dropping lines past `start_step` of an earlier run.

    Args:
      folder: Where to write; made if missing.
      start_step: The step a resumed run continues from; lines of later steps
        belong to work that was lost and is done again.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / "metrics.jsonl"
    kept = [row for row in read(folder) if row["step"] <= start_step]
    self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    self._file = self._path.open("a")
    self._events = None
    if all(map(importlib.util.find_spec, ("clu", "tensorflow", "tensorboard"))):
      with _silent_start():
        import tensorflow as tf
        from clu import metric_writers

        # The accelerators' memory is for JAX.
        tf.config.set_visible_devices([], "GPU")
      self._events = metric_writers.SummaryWriter(str(folder))
    else:
      logging.warning(
        "No TensorBoard events: clu, tensorflow or tensorboard is missing."
      )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one row of scalars, visible to readers at once."""
    scalars = {name: float(value) for name, value in scalars.items()}
    finite = {n: v if math.isfinite(v) else None for n, v in scalars.items()}
    self._file.write(json.dumps({"step": step, **finite}) + "\n")
    self._file.flush()
    if self._events is not None:
      self._events.write_scalars(step, scalars)

  def close(self) -> None:
    """Flushes and closes the files."""
    self._file.close()
    if self._events is not None:
      self._events.close()


@contextlib.contextmanager
def _silent_start() -> Iterator[None]:
  """Hides what tensorflow's C++ side writes to standard error on import.

  It looks for GPUs and reports finding none, past any logging level.
  """
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def read(folder: str | os.PathLike[str]) -> list[dict[str, float | int | None]]:
  """Returns the rows written so far; a line cut off by a crash is dropped.

  Args:
    folder: The writer's folder; without a file there are no rows.
  """
  path = pathlib.Path(folder) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows
