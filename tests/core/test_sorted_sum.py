"""Sums in the order of ids, interpreted: against NumPy, any shape and skew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import pallas_gpu, sorted_sum
from gr_jax.tokenizers import kmeans

SMALL = sorted_sum.Pieces(rows=32, together=8)


def in_numpy(ids, rows, num_rows):
  """Sums and counts in float64; ids outside go nowhere."""
  inside = (ids >= 0) & (ids < num_rows)
  sums = np.zeros((num_rows, rows.shape[1]))
  np.add.at(sums, ids[inside], np.asarray(rows, np.float64)[inside])
  return sums, np.bincount(ids[inside], minlength=num_rows)


@pytest.mark.parametrize(
  ("num_rows", "width", "num_ids"),
  [(1, 3, 2), (96, 16, 5), (301, 20, 300), (1000, 200, 40)],
)
@pytest.mark.parametrize("kind", ["even", "one", "none", "gaps"])
def test_whole_numbers_add_up(num_rows, width, num_ids, kind):
  draw = np.random.default_rng(0)
  rows = draw.integers(-9, 10, (num_rows, width)).astype(np.float32)
  ids = {
    "even": draw.integers(-1, num_ids + 2, num_rows),
    "one": np.full(num_rows, num_ids - 1),
    "none": np.full(num_rows, -1),
    "gaps": np.where(draw.random(num_rows) < 0.9, 1, num_ids),
  }[kind].astype(np.int32)
  sums, counts = sorted_sum.sum_and_count(
    jnp.asarray(ids),
    jnp.asarray(rows),
    num_rows=num_ids,
    pieces=SMALL,
    interpret=True,
  )
  want = in_numpy(ids, rows, num_ids)
  np.testing.assert_array_equal(sums, want[0])
  np.testing.assert_array_equal(counts, want[1])


@pytest.mark.parametrize("num_ids", [256, 300])
def test_bfloat16_rows_of_ids_inside_are_summed_in_float32(num_ids):
  draw = np.random.default_rng(0)
  rows = jnp.asarray(draw.normal(size=(2000, 24)), jnp.bfloat16)
  ids = draw.integers(0, num_ids, 2000).astype(np.int32)
  sums, counts = sorted_sum.sum_and_count(
    jnp.asarray(ids), rows, num_rows=num_ids, all_inside=True, interpret=True
  )
  want = in_numpy(ids, np.asarray(rows, np.float32), num_ids)
  np.testing.assert_allclose(sums, want[0], atol=1e-5)
  np.testing.assert_array_equal(counts, want[1])


def test_other_platforms_take_the_plain_form(monkeypatch):
  # Traced for a GPU, lowered for a CPU.
  monkeypatch.setattr(pallas_gpu, "is_known_device", lambda: True)
  draw = np.random.default_rng(0)
  rows = draw.normal(size=(200, 4)).astype(np.float32)
  ids = draw.integers(-1, 7, 200).astype(np.int32)
  given = jnp.asarray(ids), jnp.asarray(rows)
  plain = kmeans.sum_and_count(*given, 6)
  found = sorted_sum.sum_and_count(*given, num_rows=6, interpret=True)
  for a, b in zip(plain, found, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  text = (
    jax.jit(kmeans.sum_and_count, static_argnums=2)
    .trace(*given, 6)
    .lower(lowering_platforms=("cuda",))
  )
  assert "triton" in text.as_text()
