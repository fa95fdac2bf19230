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

# Every replica whole on some of the devices: no collectives at all.
REPLICA = "replica"

RULES: Mapping[str, Mapping[str, str]] = {
  "replicated": {},
  "replicas": {REPLICA: mesh_lib.DATA},
  "tensor": _TENSOR,
  "fsdp": _FSDP,
  "fsdp_tensor": _FSDP | _TENSOR,
}


def state_shardings(state: Any, mesh: Mesh, rules: Mapping[str, str]) -> Any:
  """Returns a tree like a training state of where its arrays lie.

  Moments lie as the parameters they belong to, counters on every device, and
  so do Adafactor's means over a matrix's rows and columns.

  Args:
    state: A `TrainState` or its shapes; its parameters lead with the axis
      "replica".
    mesh: The devices.
    rules: Logical axes to mesh axes, e.g. from `RULES`.

  Raises:
    InputError: A mesh axis that does not divide a parameter's axis.
  """
  one = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.params
  )
  specs, _ = jax.tree_util.tree_flatten_with_path(
    sharding_lib.logical_axes(one),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )
  shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]
  found = {
    _names(path): (PartitionSpec(REPLICA, *spec), shape)
    for (path, spec), shape in zip(specs, shapes, strict=True)
  }

  def find(path, leaf) -> NamedSharding:
    names = _names(path)
    if names not in found:
      return mesh_lib.replicated(mesh)
    axes, shape = found[names]
    if leaf.shape != shape:
      axes = PartitionSpec(REPLICA, *[None] * (leaf.ndim - 1))
    return mesh_lib.shard_by_rules(
      mesh, axes, leaf.shape, rules, "/".join(names)
    )

  return jax.tree_util.tree_map_with_path(find, state)


def one_replica(shardings: Any) -> Any:
  """Returns where a single replica of parameters lies, as it is used."""

  def drop(sharding):
    spec = mesh_lib.without_data(sharding).spec[1:]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))

  return jax.tree.map(drop, shardings)


def splits_replicas(shardings: Any) -> bool:
  """Whether different devices hold different replicas of parameters."""
  return any(s.spec[:1] == (mesh_lib.DATA,) for s in jax.tree.leaves(shardings))


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """The parameter's path: dictionary keys, without the optimizer's nesting."""
  return tuple(entry.key for entry in path if isinstance(entry, DictKey))
