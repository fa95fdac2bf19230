"""T5X checkpoints <-> this project's parameters; needs no T5X.

T5X saves `checkpoint_<step>/state` through orbax: {"target": parameters,
"state": {"step", "param_states"}}. The parameters have the names and shapes
of `models.EncoderDecoder`, so they are exchanged as they are.
"""

import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gr_jax.core import checks
from gr_jax.integrations import network_shapes
from gr_jax.models import T5Config

_PREFIX = "checkpoint"
_ITEM = "state"


def load_params(
  path: str | os.PathLike[str], config: T5Config
) -> tuple[int, Any]:
  """Reads the parameters of a T5X checkpoint.

  Args:
    path: A folder `checkpoint_<step>`, or a model folder that holds some, of
      which the newest is read.
    config: The network that the parameters must fit.

  Returns:
    The step, and float32 parameters for `EncoderDecoder(config)`.

  Raises:
    InputError: No checkpoint there, or one of another network.
  """
  folder, step = _find(pathlib.Path(path).absolute())
  path = folder / f"{_PREFIX}_{step}" / _ITEM
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    # As host arrays: the devices it was saved from need not be here.
    on_host = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      reader.metadata(path).item_metadata.tree,
    )
    restored = reader.restore(
      path, args=ocp.args.PyTreeRestore(restore_args=on_host)
    )
  if not isinstance(restored, dict) or "target" not in restored:
    raise checks.InputError(
      f"{str(folder)!r} holds no T5X training state: 'target' is missing."
    )
  params = jax.tree.map(
    lambda x: np.asarray(x).astype(np.float32), restored["target"]
  )
  network_shapes.check_params(params, config)
  return step, params


def save_params(
  folder: str | os.PathLike[str], params: Any, *, step: int = 0
) -> pathlib.Path:
  """Writes parameters so that T5X's eval.py and infer.py read them.

  Args:
    folder: A model folder, made if missing.
    params: Of `EncoderDecoder`.
    step: The step that T5X shall see.

  Returns:
    The folder `checkpoint_<step>`, T5X's CHECKPOINT_PATH.

  Raises:
    InputError: The folder has a checkpoint of this step.
  """
  folder = pathlib.Path(folder).absolute()
  path = folder / f"{_PREFIX}_{step}"
  if path.exists():
    raise checks.InputError(
      f"{str(path)!r} exists; name another folder or step."
    )
  folder.mkdir(parents=True, exist_ok=True)
  state = {
    "target": jax.tree.map(np.asarray, params),
    "state": {"step": np.asarray(step, np.int32), "param_states": {}},
  }
  with _manager(folder) as manager:
    manager.save(
      step, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(state)})
    )
    manager.wait_until_finished()
  return path


def _find(path: pathlib.Path) -> tuple[pathlib.Path, int]:
  """Returns the model folder and the step that a path names."""
  match = re.fullmatch(rf"{_PREFIX}_(\d+)", path.name)
  if match and path.is_dir():
    return path.parent, int(match.group(1))
  steps = [
    int(found.group(1))
    for child in (path.iterdir() if path.is_dir() else ())
    if (found := re.fullmatch(rf"{_PREFIX}_(\d+)", child.name))
  ]
  if not steps:
    raise checks.InputError(
      f"No T5X checkpoint in {str(path)!r}; name a folder that holds "
      f"{_PREFIX}_<step>."
    )
  return path, max(steps)


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    folder,
    options=ocp.CheckpointManagerOptions(
      step_prefix=_PREFIX, enable_async_checkpointing=False
    ),
    item_handlers={_ITEM: ocp.PyTreeCheckpointHandler(use_ocdbt=True)},
  )
