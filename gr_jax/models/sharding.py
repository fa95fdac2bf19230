"""Names of parameter axes, from which sharding rules are written.

Parameters stay plain arrays, so that checkpoints interchange; the axis names
are looked up by parameter path instead of travelling in the tree.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from gr_jax.core import checks

# (owner of the parameter, its name) -> axis names, T5X's `param_with_axes`.
_AXES = {
  ("token_embedder", "embedding"): ("vocab", "embed"),
  ("position_embedder", "embedding"): ("position", "embed"),
  ("logits_dense", "kernel"): ("embed", "vocab"),
  ("relpos_bias", "rel_embedding"): ("heads", "relpos_buckets"),
  ("query", "kernel"): ("embed", "joined_kv"),
  ("key", "kernel"): ("embed", "joined_kv"),
  ("value", "kernel"): ("embed", "joined_kv"),
  ("out", "kernel"): ("joined_kv", "embed"),
  ("wi", "kernel"): ("embed", "mlp"),
  ("wi_0", "kernel"): ("embed", "mlp"),
  ("wi_1", "kernel"): ("embed", "mlp"),
  ("wo", "kernel"): ("mlp", "embed"),
}


def logical_axes(params: Any) -> Any:
  """Returns a tree like `params` of PartitionSpecs of logical axis names.

  Map the names to mesh axes with rules, e.g. {"mlp": "model", "vocab":
  "model", "joined_kv": "model", "embed": None} for tensor parallelism.

  >>> import jax.numpy as jnp
  >>> logical_axes({"mlp": {"wo": {"kernel": jnp.zeros((8, 4))}}})
  {'mlp': {'wo': {'kernel': PartitionSpec('mlp', 'embed')}}}

  Args:
    params: Parameters of a network of this package, or their shapes.

  Raises:
    InputError: A parameter this package does not make.
  """

  def axes(path, leaf):
    names = tuple(entry.key for entry in path)
    found = ("embed",) if names[-1] == "scale" else _AXES.get(names[-2:])
    if found is None or len(found) != len(leaf.shape):
      raise checks.InputError(
        f"Parameter {'/'.join(names)} {leaf.shape} is none of a generator's; "
        "pass the params of a model of gr_jax.models."
      )
    return PartitionSpec(*found)

  return jax.tree_util.tree_map_with_path(axes, params)
