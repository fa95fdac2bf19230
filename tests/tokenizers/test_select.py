"""Selection by counting against sorts, over every exponent of a float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.core import mesh as meshes
from gr_jax.tokenizers import select


def values_of_all_sizes(seed, size):
  rng = np.random.default_rng(seed)
  values = np.exp(rng.uniform(-80, 80, size)).astype(np.float32)
  values[::7] = 0.0  # ties
  return values


def smallest(values, count):
  expected = np.zeros(len(values), bool)
  expected[np.argsort(values, kind="stable")[:count]] = True
  return expected


def test_smallest_by_hand():
  values = jnp.array([3.0, 1.0, 3.0, 0.5, 3.0]).view(jnp.int32)
  taken = select.take_smallest(values, jnp.int32(4))
  # Two below 3, then the first two of the three that tie.
  np.testing.assert_array_equal(taken, [True, True, True, True, False])


@pytest.mark.parametrize("count", [0, 1, 5, 72, 73, 250, 500])
def test_smallest_equals_a_sort(count):
  values = values_of_all_sizes(0, 500)
  taken = jax.jit(select.take_smallest)(values.view(np.int32), np.int32(count))
  np.testing.assert_array_equal(taken, smallest(values, count))


def test_smallest_on_eight_devices_equals_a_sort():
  mesh = meshes.make_mesh(jax.devices())
  spec = PartitionSpec(meshes.DATA)
  take = jax.jit(
    jax.shard_map(
      lambda bits, count: select.take_smallest(bits, count, axis=meshes.DATA),
      mesh=mesh,
      in_specs=(spec, PartitionSpec()),
      out_specs=spec,
      check_vma=False,
    )
  )
  values = values_of_all_sizes(1, 400)
  for count in (3, 30, 57, 200):  # 58 zeros tie, on all devices
    taken = take(values.view(np.int32), np.int32(count))
    np.testing.assert_array_equal(taken, smallest(values, count))


def test_upper_bound_is_above_by_little():
  values = values_of_all_sizes(2, 600).reshape(3, 200)
  rank = np.array([1, 40, 200], np.int32)
  bound = select.upper_bound(
    jnp.asarray(values.view(np.int32)), jnp.asarray(rank)
  )
  bound = np.asarray(bound).view(np.float32)
  wanted = np.sort(values, axis=1)[np.arange(3), rank - 1]
  assert (bound >= wanted).all()
  assert (bound[1:] <= wanted[1:] * (1 + 2**-11)).all()
  # Fewer values than the rank: nothing finite.
  none = select.upper_bound(
    jnp.asarray(values.view(np.int32)), jnp.full(3, 201, jnp.int32)
  )
  assert not np.isfinite(np.asarray(none).view(np.float32)).any()
