"""Lookups: values, both gradients against NumPy, repeats, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import lookup


def test_value_and_gradient_by_hand():
  table = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  ids = jnp.array([[2, 0], [2, 2]])
  weights = jnp.array([[1.0, 10.0], [100.0, 1000.0]])

  def total(table):
    return jnp.sum(lookup.lookup(table, ids) * weights[..., None])

  np.testing.assert_array_equal(
    lookup.lookup(table, ids), np.asarray(table)[np.asarray(ids)]
  )
  np.testing.assert_array_equal(
    jax.grad(total)(table), [[10, 10], [0, 0], [1101, 1101]]
  )


@pytest.mark.parametrize("block_elements", [40, 1 << 20])
@pytest.mark.parametrize(
  "add", [lookup.one_hot_sum, lookup.scatter_sum], ids=["matmul", "scatter"]
)
def test_sums_agree_with_numpy(monkeypatch, add, block_elements):
  monkeypatch.setattr(lookup, "_BLOCK_ELEMENTS", block_elements)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 4, size=53).astype(np.int32)  # many repeats
  rows = rng.integers(-8, 8, size=(53, 5)).astype(np.float32)
  expected = np.zeros((7, 5), np.float32)
  np.add.at(expected, ids, rows)
  summed = jax.jit(functools.partial(add, num_rows=7))(
    jnp.asarray(ids), jnp.asarray(rows)
  )
  np.testing.assert_array_equal(summed, expected)


@pytest.mark.parametrize("add", [lookup.one_hot_sum, lookup.scatter_sum])
def test_ids_outside_the_table_add_nothing(add):
  rows = jnp.ones((4, 1))
  ids = jnp.array([-1, 0, 2, 3])
  np.testing.assert_array_equal(add(ids, rows, num_rows=3), [[1], [0], [1]])


def test_bfloat16_gradients_accumulate_in_float32():
  ids = jnp.zeros((1000,), jnp.int32)
  rows = jnp.ones((1000, 2), jnp.bfloat16)
  for add in (lookup.one_hot_sum, lookup.scatter_sum):
    # A bfloat16 running sum would stop at 256.
    np.testing.assert_array_equal(add(ids, rows, num_rows=2)[0], [1000, 1000])
  table = jnp.zeros((2, 2), jnp.bfloat16)
  gradient = jax.grad(
    lambda t: jnp.sum(lookup.lookup(t, ids).astype(jnp.float32))
  )(table)
  assert gradient.dtype == jnp.bfloat16


def test_gradient_survives_jit_vmap_and_scan(key):
  tables = jax.random.normal(key, (3, 4, 2))
  ids = jnp.array([[0, 1, 1], [2, 2, 2], [3, 0, 3]])

  def loss(table, ids):
    def body(total, i):
      return total + jnp.sum(jnp.square(lookup.lookup(table, i))), None

    return jax.lax.scan(body, jnp.float32(0), ids)[0]

  def plain(table, ids):
    return jnp.sum(jnp.square(table[ids]))

  np.testing.assert_allclose(
    jax.jit(jax.vmap(jax.grad(loss)))(tables, ids),
    jax.vmap(jax.grad(plain))(tables, ids),
    rtol=1e-6,
  )
