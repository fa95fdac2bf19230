import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.models import dropout as dropout_lib


def _masks(count, shape, rate, seed=0):
  seeds = np.random.default_rng(seed).integers(0, 1 << 32, (count, 2))
  mask = jax.vmap(lambda seed: dropout_lib.keep_mask(seed, shape, rate))
  return np.asarray(mask(jnp.asarray(seeds, jnp.uint32)))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 64), (3, 5, 7, 11)])
def test_share_kept_is_one_minus_rate(rate, shape):
  masks = _masks(40, shape, rate)
  error = 5 * np.sqrt(rate * (1 - rate) / masks.size)
  np.testing.assert_allclose(masks.mean(), 1 - rate, atol=error)
  # Each mask by itself, too: no seed is a bad one.
  single = masks.reshape(40, -1).mean(axis=1)
  error = 5 * np.sqrt(rate * (1 - rate) / masks[0].size)
  np.testing.assert_allclose(single, 1 - rate, atol=error)


def test_elements_and_seeds_are_uncorrelated():
  masks = _masks(200, (32, 48), 0.5).astype(np.float64) * 2 - 1
  bound = 5 / np.sqrt(masks.size)
  for shift in (1, 2, 3, 7, 31):
    assert abs((masks * np.roll(masks, shift, axis=2)).mean()) < bound
    assert abs((masks * np.roll(masks, shift, axis=1)).mean()) < bound
    assert abs((masks * np.roll(masks, shift, axis=0)).mean()) < bound
  # No element is kept more often than others over the seeds.
  flat = masks.reshape(200, -1).mean(axis=0)
  np.testing.assert_allclose(flat.std(), 200**-0.5, rtol=0.1)


def test_seeds_that_differ_in_one_bit_give_unrelated_masks():
  one = dropout_lib.keep_mask(jnp.array([5, 9], jnp.uint32), (10_000,), 0.5)
  for other in ([4, 9], [5, 8], [5, 9 + (1 << 31)], [5 + (1 << 31), 9]):
    mask = dropout_lib.keep_mask(jnp.array(other, jnp.uint32), (10_000,), 0.5)
    np.testing.assert_allclose((one == mask).mean(), 0.5, atol=0.025)


def test_a_sharded_batch_draws_the_same_mask():
  seed = jnp.array([1, 2], jnp.uint32)
  mesh = jax.make_mesh((8,), ("data",))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec("data")
  )
  sharded = jax.jit(
    lambda: dropout_lib.keep_mask(seed, (16, 3, 5), 0.3),
    out_shardings=sharding,
  )()
  np.testing.assert_array_equal(
    sharded, dropout_lib.keep_mask(seed, (16, 3, 5), 0.3)
  )


def test_drop_scales_what_it_keeps(key):
  dropout = dropout_lib.start(key, rate=0.25, num_sites=2, shared=False)
  x = jnp.ones((4, 6, 50))
  y = np.asarray(dropout_lib.drop(dropout, 1, x))
  assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
  assert not np.array_equal(y, dropout_lib.drop(dropout, 0, x))
  # Its part with site 1 alone is the same site.
  part = dropout_lib.sites(dropout, 1, 1)
  np.testing.assert_array_equal(dropout_lib.drop(part, 0, x), y)


def test_shared_masks_serve_all_positions_of_an_example(key):
  dropout = dropout_lib.start(key, rate=0.5, num_sites=1, shared=True)
  y = np.asarray(dropout_lib.drop(dropout, 0, jnp.ones((4, 6, 50))))
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
  assert not np.array_equal(y[0], y[1])
  own = dropout_lib.drop(dropout, 0, jnp.ones((4, 6, 50)), shared=False)
  assert not np.array_equal(own[:, 0], own[:, 1])


def test_no_dropout_is_none_and_changes_nothing(key):
  assert dropout_lib.start(key, rate=0.0, num_sites=3, shared=True) is None
  x = jnp.ones((1, 2, 3))
  assert dropout_lib.drop(None, 0, x) is x
  assert dropout_lib.sites(None, 0, 1) is None
