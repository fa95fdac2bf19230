"""Fits with items split over devices give what one device gives."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import mesh as mesh_lib
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  balanced,
  fsq,
  gradient_fit,
  kmeans,
  minibatch,
  opmq,
  opq,
  pq,
  reduced,
  residual_kmeans,
  rq_opq,
  rqvae_fit,
  rvq,
  sinkhorn,
)

# data x model, and x replica.
ALL_MESHES = [(8, 1), (4, 2), (2, 4), (1, 8), (2, 2, 2)]
# The others take minutes to compile for.
MESHES = [
  shape if shape == (8, 1) else pytest.param(shape, marks=pytest.mark.slow)
  for shape in ALL_MESHES
]


def make_mesh(shape):
  axes = dict(zip(("data", "model", "replica"), shape, strict=False))
  return mesh_lib.make_mesh(jax.devices(), **axes)


def clusters(num_rows=203, seed=0):
  """Rows around 5 x 4 centers, the second level's ten times closer.

  203 rows leave the last of 8, 4 or 2 parts partly empty.
  """
  rng = np.random.default_rng(seed)
  coarse = 10 * rng.normal(size=(5, 6))
  fine = rng.normal(size=(4, 6))
  x = coarse[rng.integers(0, 5, num_rows)] + fine[rng.integers(0, 4, num_rows)]
  return (x + 0.01 * rng.normal(size=x.shape)).astype(np.float32)


def integers(num_rows=203, seed=0):
  """Whole numbers: distances are exact, and many are equal."""
  rng = np.random.default_rng(seed)
  return rng.integers(-3, 4, (num_rows, 4)).astype(np.float32)


def assert_same_fit(got, want):
  """States, codes and curves of two fits."""
  assert_same_report(got[1], want[1])
  for one, other in zip(
    jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def assert_same_report(got, want):
  """Codes and curves of two fits."""
  np.testing.assert_array_equal(got.codes, want.codes)
  assert got.curves.keys() == want.curves.keys()
  for name, curve in got.curves.items():
    np.testing.assert_allclose(
      curve, want.curves[name], rtol=1e-5, atol=1e-4, err_msg=name
    )
  assert got.revived == want.revived


@pytest.mark.parametrize("shape", ALL_MESHES)
def test_rows_lie_in_parts_and_come_back(shape):
  split = RowSplit(make_mesh(shape), 11)
  x = np.arange(22, dtype=np.float32).reshape(11, 2) + 1
  placed = split.place(x)
  assert placed.shape == (shape[0] * prod(shape[2:]) * split.part_size, 2)
  assert {s.data.shape for s in placed.addressable_shards} == {
    (split.part_size, 2)
  }
  np.testing.assert_array_equal(split.to_host(placed), x)
  assert not np.asarray(placed)[11:].any()
  np.testing.assert_array_equal(
    split.take(placed, jnp.array([10, 0, 3])), x[[10, 0, 3]]
  )
  marks = split.run(
    lambda x: split.is_row(), takes_rows=(True,), gives_rows=True
  )(placed)
  np.testing.assert_array_equal(marks, np.arange(placed.shape[0]) < 11)


@pytest.mark.parametrize("shape", MESHES)
def test_residual_kmeans(shape, key):
  tokenizer = residual_kmeans.ResidualKMeans(codebook_sizes=(5, 4))
  x = clusters()
  want = tokenizer.fit(x, key=key)
  assert_same_fit(tokenizer.fit(x, key=key, mesh=make_mesh(shape)), want)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
@pytest.mark.parametrize("num_rows", [16, 203])
def test_empty_clusters_take_the_same_rows(shape, num_rows, key):
  """All codes but one start far away; ties among the farthest rows."""
  x = integers(num_rows)
  codebook = np.full((12, 4), 1e3, np.float32)
  codebook[3] = 0
  codebook = jnp.asarray(codebook)
  want = kmeans.fit(jnp.asarray(x), num_codes=12, key=key, codebook=codebook)
  split = RowSplit(make_mesh(shape), num_rows)
  got = kmeans.fit(
    split.place(x), num_codes=12, key=key, codebook=codebook, split=split
  )
  assert int(want.revived) >= 11
  assert int(got.revived) == int(want.revived)
  assert int(got.num_iters) == int(want.num_iters)
  np.testing.assert_allclose(
    got.state.codebook, want.state.codebook, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(got.state.counts, want.state.counts)


@pytest.mark.parametrize(
  ("shape", "order"),
  [
    ((8, 1), "given"),
    *(pytest.param(s, "given", marks=pytest.mark.slow) for s in ALL_MESHES[1:]),
    pytest.param((4, 2), "random", marks=pytest.mark.slow),
    pytest.param((4, 2), "demand", marks=pytest.mark.slow),
  ],
)
def test_balanced_residual_kmeans(shape, order, key):
  tokenizer = balanced.BalancedResidualKMeans(
    codebook_sizes=(5, 4), max_iters=4, order=order
  )
  x = clusters()
  want = tokenizer.fit(x, key=key)
  assert_same_fit(tokenizer.fit(x, key=key, mesh=make_mesh(shape)), want)


@pytest.mark.parametrize("shape", MESHES)
def test_minibatch_residual_kmeans(shape, key):
  tokenizer = minibatch.MiniBatchResidualKMeans(
    codebook_sizes=(5, 4), batch_size=50, num_passes=3
  )
  x = clusters()
  want = tokenizer.fit(x, key=key)
  assert_same_fit(tokenizer.fit(x, key=key, mesh=make_mesh(shape)), want)


@pytest.mark.parametrize("shape", MESHES)
def test_the_spread_of_rows(shape):
  x = clusters() + 3
  x[:, 2] = 7.0
  split = RowSplit(make_mesh(shape), len(x))
  want, rows = gradient_fit.prepare(x, standardize=True, init=None)
  got, placed = gradient_fit.prepare(
    x, standardize=True, init=None, split=split
  )
  np.testing.assert_allclose(got.mean, want.mean, rtol=1e-5)
  np.testing.assert_allclose(got.scale, want.scale, rtol=1e-5)
  np.testing.assert_allclose(split.to_host(placed), rows, atol=1e-4)


@pytest.mark.parametrize(
  ("shape", "options"),
  [
    ((8, 1), {}),
    *(pytest.param(s, {}, marks=pytest.mark.slow) for s in ALL_MESHES[1:]),
    # 4 does not divide 50.
    pytest.param(
      (4, 2), {"ema_decay": 0.9, "batch_size": 50}, marks=pytest.mark.slow
    ),
  ],
)
def test_rq_vae(shape, options, key):
  tokenizer = rqvae_fit.RQVAE(
    **{
      "codebook_sizes": (5, 4),
      "hidden_dims": (16,),
      "code_dim": 4,
      "num_epochs": 30,
      "batch_size": 64,
      "check_every_epochs": 10,
      **options,
    }
  )
  assert_trains_alike(tokenizer, shape, key)


def assert_trains_alike(tokenizer, shape, key):
  """Losses to 1e-4 after the epochs' rounding, codes exactly."""
  x = clusters()
  state, want = tokenizer.fit(x, key=key)
  other, got = tokenizer.fit(x, key=key, mesh=make_mesh(shape))
  np.testing.assert_array_equal(got.codes, want.codes)
  assert got.revived == want.revived
  for name, curve in got.curves.items():
    np.testing.assert_allclose(
      curve, want.curves[name], rtol=1e-4, atol=1e-5, err_msg=name
    )
  for one, two in zip(
    jax.tree.leaves(other), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_allclose(one, two, atol=1e-3)


def test_rvq_on_a_mesh(key):
  tokenizer = rvq.RVQ(codebook_sizes=(5, 4), num_epochs=10, batch_size=64)
  x = clusters()
  want = tokenizer.fit(x, key=key)[1]
  got = tokenizer.fit(x, key=key, mesh=make_mesh((8, 1)))[1]
  np.testing.assert_array_equal(got.codes, want.codes)
  np.testing.assert_allclose(got.curves["loss"], want.curves["loss"], rtol=1e-4)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize(
  "tokenizer",
  [
    pq.PQ(codebook_sizes=(6, 5)),
    sinkhorn.SinkhornResidualKMeans(codebook_sizes=(5, 4), max_iters=5),
  ],
  ids=lambda tokenizer: type(tokenizer).__name__,
)
def test_other_kmeans(tokenizer, shape, key):
  x = clusters()
  want = tokenizer.fit(x, key=key)
  assert_same_fit(tokenizer.fit(x, key=key, mesh=make_mesh(shape)), want)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize(
  "tokenizer",
  [
    # Fits the other inside.
    rq_opq.RQOPQ(residual_sizes=(5,), subspace_sizes=(4, 3), num_iters=5),
    pytest.param(
      opq.OPQ(codebook_sizes=(6, 5), num_iters=5), marks=pytest.mark.slow
    ),
  ],
  ids=lambda tokenizer: type(tokenizer).__name__,
)
def test_rotations(tokenizer, shape, key):
  """Few codes leave some directions free: the rotation is not one alone."""
  x = clusters()
  _, want = tokenizer.fit(x, key=key)
  _, got = tokenizer.fit(x, key=key, mesh=make_mesh(shape))
  assert_same_report(got, want)


SHORT = {"hidden_dims": (16,), "num_epochs": 10, "batch_size": 64}


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize(
  "tokenizer",
  [
    fsq.FSQ(num_tokens=2, levels=(3, 2), sub_dim=4, **SHORT),
    pytest.param(
      opmq.OPMQ(codebook_sizes=(5, 4), code_dim=4, **SHORT),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      reduced.ReducedVariational(
        code_dim=3,
        quantizer=residual_kmeans.ResidualKMeans(codebook_sizes=(5, 4)),
        **SHORT,
      ),
      marks=pytest.mark.slow,
    ),
  ],
  ids=lambda tokenizer: type(tokenizer).__name__,
)
def test_other_networks(tokenizer, shape, key):
  assert_trains_alike(tokenizer, shape, key)
