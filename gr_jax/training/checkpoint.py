"""Checkpoints of a run: the latest states and the best parameters.

Every replica keeps the parameters of its own best validation.

The only file that knows orbax. A checkpoint is whole or absent: orbax writes
a temporary folder and renames it.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from gr_jax.core import checks, processes
from gr_jax.training.state import TrainState


class Checkpointer:
  """Saves and restores one run below a folder.

  `latest/` holds the newest two whole states with the run's facts (best values
  so far, patience used, fingerprint); `best/r/` the parameters of replica r's
  best validation.
  """

  def __init__(self, folder: str | os.PathLike[str], *, fingerprint: str):
    """Opens the folder.

    Args:
      folder: Where this run's checkpoints lie; made if missing.
      fingerprint: Hash of all that the run depends on: configuration, data,
        semantic IDs. A checkpoint with another one is refused.
    """
    folder = pathlib.Path(folder).absolute()
    self._folder = folder
    self._fingerprint = fingerprint
    self._latest = ocp.CheckpointManager(
      folder / "latest",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
      ),
    )
    self._best: dict[int, ocp.CheckpointManager] = {}

  def _best_of(self, replica: int) -> ocp.CheckpointManager:
    if replica not in self._best:
      self._best[replica] = ocp.CheckpointManager(
        self._folder / "best" / str(replica),
        options=ocp.CheckpointManagerOptions(
          max_to_keep=1, enable_async_checkpointing=False
        ),
      )
    return self._best[replica]

  def save(self, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Saves the whole state and the run's facts, JSON types."""
    step = int(state.step)
    if step in self._latest.all_steps():
      return
    self._latest.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        facts=ocp.args.JsonSave({**facts, "fingerprint": self._fingerprint}),
      ),
    )

  def save_best(self, replica: int, step: int, params: Any) -> None:
    """Replaces a replica's best parameters with `params`, those at `step`."""
    best = self._best_of(replica)
    for old in best.all_steps():
      if old >= step:  # of a run that went on further before it was cut off
        best.delete(old)
    best.save(
      step, args=ocp.args.Composite(params=ocp.args.StandardSave(params))
    )

  def restore(self, template: TrainState) -> tuple[TrainState, dict] | None:
    """Returns the newest readable state and its facts, or None.

    A checkpoint that cannot be read (cut off by a full disk, say) is skipped
    with a warning in favor of the one before it.

    Args:
      template: A state of the right shapes, dtypes and shardings.

    Raises:
      InputError: The checkpoint is of another run, or none can be read.
    """
    steps = sorted(self._latest.all_steps(), reverse=True)
    for step in steps:
      facts = self._read(step, "facts", ocp.args.JsonRestore())
      if facts is None:
        continue
      if facts.pop("fingerprint") != self._fingerprint:
        raise checks.InputError(
          f"{str(self._folder)!r} holds checkpoints of another configuration "
          "or catalog; choose another --workdir or delete that folder."
        )
      abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
      state = self._read(step, "state", ocp.args.StandardRestore(abstract))
      if state is None:
        continue
      for late in [s for s in steps if s > step]:
        self._latest.delete(late)
      return state, facts
    if steps:
      raise checks.InputError(
        f"No checkpoint in {str(self._folder)!r} can be read; delete that "
        "folder to start over."
      )
    return None

  def _read(self, step: int, part: str, how: Any) -> Any:
    """Returns a part of a checkpoint, None where any process cannot read it."""
    found = None
    try:
      found = self._latest.restore(
        step, args=ocp.args.Composite(**{part: how})
      )[part]
    except (OSError, ValueError, KeyError) as error:
      logging.warning("Checkpoint %d cannot be read: %s", step, error)
    return None if processes.any_of(found is None) else found

  def restore_best(self, replica: int, template: Any) -> Any:
    """Returns the parameters of a replica's best validation.

    Args:
      replica: Which one.
      template: Parameters of the right shapes, dtypes and shardings.

    Raises:
      InputError: Nothing was validated yet.
    """
    best = self._best_of(replica)
    step = best.latest_step()
    if step is None:
      raise checks.InputError(
        f"No best parameters in {str(self._folder)!r}; train further, to the "
        "first validation."
      )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    restored = best.restore(
      step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    )
    return restored.params

  def close(self) -> None:
    """Waits for writes and closes."""
    for manager in (self._latest, *self._best.values()):
      manager.close()
