"""How kernels take a batch axis of `vmap`, and parts of arrays on devices.

XLA does not see into a kernel: it would gather operands that are split over
devices, and `vmap` would add an axis the kernel was not written for. A kernel
that treats some axes independently says so here.
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

# Axes of operands or results, such as ("r b s", "r h"): a name each.
Axes = tuple[str, ...]


def over_replicas(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function whose arrays' first axis is prolonged by `vmap`.

  Args:
    function: Of trees of arrays [R, ...], independent along R.
  """

  @custom_vmap
  def run(*args):
    return function(*args)

  @run.def_vmap
  def _batched(axis_size, is_batched, *args):
    def merge(x, batched):
      if not batched:
        x = jnp.broadcast_to(x[None], (axis_size, *x.shape))
      return x.reshape(-1, *x.shape[2:])

    out = run(*jax.tree.map(merge, args, tuple(is_batched)))
    out = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
    return out, jax.tree.map(lambda _: True, out)

  return run


@functools.lru_cache(maxsize=256)
def split(
  function: Callable[..., Any],
  form: Hashable,
  operands: Axes,
  results: Axes,
  parts: str,
) -> Callable[..., Any]:
  """Returns `function`, which every device runs on the parts it has.

  Args:
    function: Of `form` and arrays; returns a sequence of arrays.
    form: What else it depends on.
    operands: Names of every operand's axes, apart by spaces.
    results: Likewise.
    parts: Names, apart by spaces, of axes along which it is independent. A
      result without one of them is a sum over it.
  """
  free = frozenset(parts.split())

  def run(*args):
    return tuple(function(form, *args))

  def partition(mesh, given, _):
    found: dict[str, Any] = {}
    for axes, operand in zip(operands, given, strict=True):
      for axis, part in zip(axes.split(), operand.sharding.spec, strict=False):
        if axis in free and part is not None:
          found.setdefault(axis, part)

    def sharding(axes):
      spec = (found.get(axis) for axis in axes.split())
      return NamedSharding(mesh, PartitionSpec(*spec))

    def run_and_add(*args):
      return tuple(
        _add(
          result, [found.get(x) for x in parts.split() if x not in axes.split()]
        )
        for result, axes in zip(run(*args), results, strict=True)
      )

    return (
      mesh,
      run_and_add,
      tuple(map(sharding, results)),
      tuple(map(sharding, operands)),
    )

  run_on_parts = custom_partitioning(run)
  # In the order of their first mention, as the compiler wants them.
  named = dict.fromkeys(" ".join((*operands, *results)).split())
  run_on_parts.def_partition(
    partition,
    sharding_rule=", ".join(operands) + " -> " + ", ".join(results),
    need_replication_factors=tuple(axis for axis in named if axis not in free),
  )
  return run_on_parts


def _add(x: jax.Array, parts: Iterable[Any]) -> jax.Array:
  """Adds what devices have that share an axis."""
  for part in parts:
    if part is not None:
      x = jax.lax.psum(x, part)
  return x
