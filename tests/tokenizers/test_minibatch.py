"""Mini-batch k-means: by hand, close to Lloyd, shards, refusals."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.tokenizers import kmeans, minibatch, residual_kmeans


def mixture(seed=0, num_rows=4000, width=8, num_clusters=60):
  rng = np.random.default_rng(seed)
  centers = 2 * rng.normal(size=(num_clusters, width))
  rows = centers[rng.integers(0, num_clusters, num_rows)]
  return (rows + rng.normal(size=(num_rows, width))).astype(np.float32)


def test_an_update_is_the_running_mean_by_hand():
  state = kmeans.from_codebook(jnp.array([[0.0], [10.0], [99.0]]))
  state = state.replace(inertia=jnp.float32(0.0))
  state = minibatch.update(state, jnp.array([[2.0], [4.0], [9.0]]))
  np.testing.assert_allclose(state.codebook, [[3.0], [9.0], [99.0]])
  # Two earlier rows at 3 and one new at 0: a third of the way.
  state = minibatch.update(state, jnp.array([[0.0]]))
  np.testing.assert_allclose(state.codebook, [[2.0], [9.0], [99.0]])
  np.testing.assert_array_equal(state.counts, [3, 1, 0])
  # Distances to the codes before each update: 2, 4, 1, then 3.
  np.testing.assert_allclose(state.inertia, 4 + 16 + 1 + 9, rtol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_inertia_is_within_two_percent_of_lloyd(seed, key):
  x = mixture(seed)
  _, ours = minibatch.MiniBatchResidualKMeans(
    codebook_sizes=(32,), batch_size=512, num_passes=10
  ).fit(x, key=key)
  _, lloyd = residual_kmeans.ResidualKMeans(
    codebook_sizes=(32,), max_iters=10, tol=0.0
  ).fit(x, key=key)
  assert ours.mse < 1.02 * lloyd.mse


def test_batches_hold_every_row_once_in_another_order():
  shards = [np.arange(100.0)[:, None], np.arange(100.0, 137.0)[:, None]]
  batches = list(minibatch.read_batches(shards, 4, np.random.default_rng(0)))
  rows = np.concatenate(batches)[:, 0]
  np.testing.assert_array_equal(np.sort(rows), np.arange(137))
  assert (rows != np.arange(137)).any()
  assert max(map(len, batches)) == 4


@pytest.mark.parametrize("num_devices", [0, 4])
def test_batches_are_the_same_on_devices(num_devices):
  shards = [mixture(num_rows=100), mixture(num_rows=37)]
  mesh = None
  if num_devices:
    mesh = mesh_lib.make_mesh(jax.devices()[:num_devices])
  here = list(minibatch.read_batches(shards, 6, np.random.default_rng(0)))
  there = list(
    minibatch.read_batches_to(mesh, shards, 6, np.random.default_rng(0))
  )
  assert len(here) == len(there)
  for one, (other, split) in zip(here, there, strict=True):
    other = other if split is None else split.to_host(other)
    np.testing.assert_array_equal(one, other)


def test_memory_mapped_shards(tmp_path, key):
  x = mixture(num_rows=1000)
  for i, part in enumerate(np.array_split(x, 3)):
    np.save(tmp_path / f"{i}.npy", part)
  shards = [np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(3)]
  tokenizer = minibatch.MiniBatchResidualKMeans(
    codebook_sizes=(16, 16), batch_size=128, num_passes=5
  )
  state, report = tokenizer.fit_shards(shards, key=key)
  _, whole = tokenizer.fit(x, key=key)
  assert report.codes.shape == (1000, 2)
  np.testing.assert_array_equal(report.codes, tokenizer.encode(state, x))
  assert report.mse == pytest.approx(whole.mse, rel=0.05)


def test_a_catalog_is_never_in_memory_as_a_whole(tmp_path, key):
  generator = np.random.default_rng(0)
  for i in range(4):
    x = generator.normal(size=(25_000, 64)).astype(np.float32)
    np.save(tmp_path / f"{i}.npy", x)
  shards = [np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(4)]
  tokenizer = minibatch.MiniBatchResidualKMeans(
    codebook_sizes=(4,), batch_size=512, num_passes=1
  )
  tracemalloc.start()
  try:
    tokenizer.fit_shards(shards, key=key)
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most < sum(shard.nbytes for shard in shards) / 2


def test_codes_without_rows_are_moved_to_rows(key):
  x = mixture(num_rows=600)
  first = jnp.asarray(np.concatenate([x[:8], np.full((8, 8), 1e3, np.float32)]))
  tokenizer = minibatch.MiniBatchResidualKMeans(
    codebook_sizes=(16,), batch_size=100, num_passes=4
  )
  _, report = tokenizer.fit(
    x, key=key, init=residual_kmeans.CodebooksState((first,))
  )
  assert report.revived[0] >= 8
  assert report.utilization == (1.0,)


@pytest.mark.parametrize(
  ("shards", "message"),
  [
    ([], "No shards"),
    ([np.zeros((9, 2), np.float32), np.zeros((9, 3), np.float32)], "width 3"),
    ([np.zeros((9, 2), np.float64)], "Shard 0 must be float32, got float64"),
    ([np.ones((9, 2), np.float32)], "All 9 embeddings are equal"),
    ([np.eye(3, dtype=np.float32)], "N=3, num_codes=4"),
    (
      [np.eye(9, dtype=np.float32), np.full((2, 9), np.nan, np.float32)],
      "shard 1, from 0.*18 NaN",
    ),
  ],
)
def test_unusable_shards_are_refused(shards, message, key):
  tokenizer = minibatch.MiniBatchResidualKMeans(codebook_sizes=(4,))
  with pytest.raises(checks.InputError, match=message):
    tokenizer.fit_shards(shards, key=key)


def test_impossible_options_are_refused():
  with pytest.raises(checks.InputError, match="num_passes=0"):
    minibatch.MiniBatchResidualKMeans(num_passes=0)
