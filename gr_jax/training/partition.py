"""Which parameters are split over which mesh axis: tables of rules.

A rule maps a logical axis (`gr_jax.models.sharding` names them) to a mesh
axis. Nothing else differs between the ways of training in parallel; the
compiler derives the collectives (GSPMD, arXiv:2105.04663).
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from gr_jax.core import mesh as mesh_lib
from gr_jax.models import sharding as sharding_lib

# Megatron's split (arXiv:1909.08053, section 3): a block's first matmul by
# columns, its second by rows, one sum over `model` a block.
_TENSOR = {
  "vocab": mesh_lib.MODEL,
  "mlp": mesh_lib.MODEL,
  "joined_kv": mesh_lib.MODEL,
}
# Every parameter and its optimizer state in as many pieces as batches
# (ZeRO-3, arXiv:1910.02054); a step gathers parameters and scatters gradients.
_FSDP = {"embed": mesh_lib.DATA}

RULES: Mapping[str, Mapping[str, str]] = {
  "replicated": {},
  "tensor": _TENSOR,
  "fsdp": _FSDP,
  "fsdp_tensor": _FSDP | _TENSOR,
}


def state_shardings(state: Any, mesh: Mesh, rules: Mapping[str, str]) -> Any:
  """Returns a tree like a training state of where its arrays lie.

  Moments lie as the parameters they belong to, counters on every device.

  Args:
    state: A `TrainState` or its shapes.
    mesh: The devices.
    rules: Logical axes to mesh axes, e.g. from `RULES`.

  Raises:
    InputError: A mesh axis that does not divide a parameter's axis.
  """
  specs, _ = jax.tree_util.tree_flatten_with_path(
    sharding_lib.logical_axes(state.params),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )
  axes = {_names(path): spec for path, spec in specs}

  def find(path, leaf) -> NamedSharding:
    names = _names(path)
    if names not in axes:
      return mesh_lib.replicated(mesh)
    return mesh_lib.shard_by_rules(
      mesh, axes[names], leaf.shape, rules, "/".join(names)
    )

  return jax.tree_util.tree_map_with_path(find, state)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The parameter's path: dictionary keys, without the optimizer's nesting."""
  return tuple(entry.key for entry in path if isinstance(entry, DictKey))
