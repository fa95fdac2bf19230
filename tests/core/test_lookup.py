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


def sum_of_whole_numbers(ids, rows, num_rows):
  """What `whole_number_sum` promises, in Python's integers."""
  _, exponent = np.frexp(np.abs(rows).max())
  whole = np.round(np.ldexp(rows.astype(np.float64), 23 - exponent))
  total = np.zeros((num_rows + 1, rows.shape[1]), np.int64)
  np.add.at(total, np.where(ids < 0, num_rows, ids), whole.astype(np.int64))
  high = (total[:-1] >> 24).astype(np.float32)
  low = (total[:-1] & 0xFFFFFF).astype(np.float32)
  return np.ldexp(high, 1 + exponent) + np.ldexp(low, exponent - 23)


@pytest.mark.parametrize("num_rows", [1, 7, 300, 70_001])
@pytest.mark.parametrize("skewed", [False, True])
def test_whole_number_sums_are_exact_in_any_order(
  monkeypatch, num_rows, skewed
):
  # As if 64 rows could be added: a skewed case takes parts of 128 rows.
  monkeypatch.setattr(lookup, "_MOST_ADDED", 64)
  monkeypatch.setattr(lookup, "_COPIES_APART", 2)
  monkeypatch.setattr(lookup, "_SPARE", 2)
  parts = []
  add_up = lookup._sum_digits
  draw = np.random.default_rng(0)
  scale = 10.0 ** draw.integers(-3, 4, (1, 5))
  rows = (draw.standard_normal((num_rows, 5)) * scale).astype(np.float32)
  ids = draw.integers(-1, 4, num_rows).astype(np.int32)  # -1 and 3 are none
  if skewed:
    ids = np.where(draw.random(num_rows) < 0.9, 2, ids)

  def spy(place, whole, *sizes):
    jax.debug.callback(lambda: parts.append(whole.shape[0]))
    return add_up(place, whole, *sizes)

  monkeypatch.setattr(lookup, "_sum_digits", spy)
  add = jax.jit(lambda *given: lookup.whole_number_sum(*given, num_rows=3))
  found, counts = add(jnp.asarray(ids), jnp.asarray(rows))
  jax.effects_barrier()
  assert (len(parts) > 1) == (skewed and num_rows > 128)
  want = sum_of_whole_numbers(np.where(ids == 3, -1, ids), rows, 3)
  np.testing.assert_array_equal(found, want)
  np.testing.assert_array_equal(counts, [np.sum(ids == k) for k in range(3)])
  exact = np.zeros((5, 5))
  np.add.at(exact, ids, rows.astype(np.float64))
  unit = 2.0**-23 * np.abs(rows).max()
  np.testing.assert_allclose(found, exact[:3], atol=unit * max(num_rows, 4))


def test_whole_number_sums_of_one_id_and_of_extreme_sizes():
  draw = np.random.default_rng(0)
  ids = np.full(20_000, 1, np.int32)  # more than fit one sum
  for scale in (1.0, 1e-30, 1e34):
    rows = (scale * draw.standard_normal((20_000, 3))).astype(np.float32)
    found, counts = lookup.whole_number_sum(
      jnp.asarray(ids), jnp.asarray(rows), num_rows=2
    )
    assert counts.tolist() == [0, 20_000]
    want = sum_of_whole_numbers(ids, rows, 2)
    np.testing.assert_array_equal(found, want)


def test_whole_numbers_sum_exactly():
  rows = jnp.array([[3.0, -1.0], [-5.0, 0.5], [8.0, -8.0]])
  ids = jnp.array([0, 0, 1])
  found, _ = lookup.whole_number_sum(ids, rows, num_rows=3)
  np.testing.assert_array_equal(found, [[-2.0, -0.5], [8.0, -8.0], [0.0, 0.0]])
  zeros, _ = lookup.whole_number_sum(ids, 0.0 * rows, num_rows=3)
  np.testing.assert_array_equal(zeros, 0.0)
