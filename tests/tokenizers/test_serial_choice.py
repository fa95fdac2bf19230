"""Choosing in windows against choosing in turn, on data of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.core import checks
from gr_jax.core import mesh as meshes
from gr_jax.tokenizers import balanced, candidate_lists, serial_choice
from gr_jax.tokenizers.serial_choice import Windows
from tests.tokenizers.test_balanced import sorted_assign

SMALL = Windows(window=4, matmul=8, sample=4, stages=2)


def rows(kind, seed, num_rows, width):
  """Rows and the whole-number copies that make float32 distances exact."""
  rng = np.random.default_rng(seed)
  if kind == "ties":
    x = rng.integers(0, 3, size=(num_rows, width))
  elif kind == "whole":
    x = rng.integers(-60, 61, size=(num_rows, width))
  elif kind == "one point":
    x = np.full((num_rows, width), 7)
  elif kind == "clusters, far from zero":
    centers = rng.integers(0, 500, size=(5, width)) + 2000
    x = centers[rng.integers(0, 5, num_rows)]
    x = x + rng.integers(-9, 10, size=(num_rows, width))
  elif kind == "sorted":
    x = np.sort(rng.integers(0, 1000, size=(num_rows, width)), axis=0)
  return x.astype(np.float32)


def case(kind, seed, num_rows, num_codes, width=4):
  rng = np.random.default_rng(seed + 100)
  x = rows(kind, seed, num_rows, width)
  centers = x[rng.permutation(num_rows)[:num_codes]]
  counts = balanced.capacities(num_rows, num_codes)
  return x, centers, counts, rng.permutation(num_codes).astype(np.int32)


def choose(x, centers, counts, order, windows):
  return serial_choice.choose(
    *map(jnp.asarray, (x, centers, counts, order)), windows=windows
  )


@pytest.mark.parametrize(
  "kind", ["whole", "ties", "one point", "clusters, far from zero", "sorted"]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pass_equals_sorting(kind, precision):
  # 41 clusters of 1500 rows: a remainder, a last matmul and window not full.
  given = case(kind, 0, 1500, 41)
  windows = Windows(window=4, matmul=8, sample=4, stages=2, precision=precision)
  found = choose(*given, windows)
  np.testing.assert_array_equal(found.codes, sorted_assign(*given))


@pytest.mark.parametrize(
  "windows",
  [
    Windows(window=1, matmul=1, stages=1),
    Windows(window=41, matmul=41, reach=0.0, stages=1),
    Windows(window=16, matmul=32, reach=3.0, sample=1000, stages=3),
  ],
)
def test_how_a_pass_is_cut_up_changes_nothing(windows):
  given = case("whole", 1, 1500, 41)
  found = choose(*given, windows)
  np.testing.assert_array_equal(found.codes, sorted_assign(*given))
  assert int(found.num_windows) >= 41 // windows.window


@pytest.mark.parametrize(
  ("num_rows", "num_codes"), [(1, 1), (300, 300), (257, 2)]
)
def test_sizes_at_the_edge(num_rows, num_codes):
  given = case("whole", 2, num_rows, num_codes)
  found = choose(*given, SMALL)
  np.testing.assert_array_equal(found.codes, sorted_assign(*given))


def test_clusters_that_want_the_same_items_end_windows_early():
  x, centers, counts, order = case("whole", 3, 1500, 30)
  centers[:] = centers[0]
  exact = Windows(window=4, matmul=8, reach=1.0, sample=50, stages=1)
  found = choose(x, centers, counts, order, exact)
  np.testing.assert_array_equal(
    found.codes, sorted_assign(x, centers, counts, order)
  )
  # Lists of two shares serve two of four clusters at one place.
  assert int(found.num_windows) >= 15


def test_ties_too_many_to_list_are_selected_by_counting():
  given = case("one point", 0, 1500, 41)
  found = choose(*given, SMALL)
  assert int(found.num_slow) > 0
  np.testing.assert_array_equal(found.codes, sorted_assign(*given))


@pytest.mark.parametrize("width", [3, 64])
def test_real_numbers_give_what_counting_gives(width):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3000, width)).astype(np.float32) + 5
  given = (
    x,
    x[rng.permutation(3000)[:50]],
    balanced.capacities(3000, 50),
    np.arange(50, dtype=np.int32),
  )
  slow = balanced.assign_by_counting(*map(jnp.asarray, given))
  for precision in ("float32", "bfloat16"):
    windows = Windows(
      window=8, matmul=16, sample=8, stages=1, precision=precision
    )
    np.testing.assert_array_equal(choose(*given, windows).codes, slow)


@pytest.mark.parametrize("kind", ["whole", "ties", "one point", "sorted"])
def test_eight_devices_choose_as_one(kind):
  mesh = meshes.make_mesh(jax.devices())
  rows_spec, whole = PartitionSpec(meshes.DATA), PartitionSpec()
  x, centers, counts, order = case(kind, 4, 1501, 23)
  padded = np.pad(x, ((0, -1501 % 8), (0, 0)), constant_values=np.nan)
  found = jax.jit(
    jax.shard_map(
      lambda *given: serial_choice.choose(
        *given, windows=SMALL, axis=meshes.DATA
      ),
      mesh=mesh,
      in_specs=(rows_spec, whole, whole, whole),
      out_specs=serial_choice.Choice(rows_spec, whole, whole, whole),
      check_vma=False,
    )
  )(padded, centers, counts, order)
  np.testing.assert_array_equal(
    np.asarray(found.codes)[:1501], sorted_assign(x, centers, counts, order)
  )
  assert (np.asarray(found.codes)[1501:] == -1).all()


def test_lists_are_in_order_and_whole():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(3, 2048)).astype(np.float32)
  limit = np.array([-9.0, 0.0, 2.0], np.float32)
  free = rng.random(2048) < 0.7
  items, count = jax.jit(candidate_lists.compact, static_argnums=3)(
    scores, limit, free, 1000
  )
  for row in range(3):
    expected = np.flatnonzero((scores[row] <= limit[row]) & free)
    assert int(count[row]) == len(expected)
    kept = min(1000, len(expected))
    np.testing.assert_array_equal(items[row, :kept], expected[:kept])


@pytest.mark.parametrize("largest", [1, 256, 300])
@pytest.mark.parametrize("length", [1, 255, 257, 40000])
def test_prefix_sums_are_exact(length, largest):
  x = np.random.default_rng(0).integers(0, largest + 1, size=(2, length))
  found = candidate_lists.prefix_sum(jnp.asarray(x, jnp.int32), largest=largest)
  np.testing.assert_array_equal(found, np.cumsum(x, axis=1))


def test_impossible_windows_are_refused():
  with pytest.raises(checks.InputError, match="1 <= window <= 256 and matmul"):
    Windows(window=64, matmul=32)
  with pytest.raises(checks.InputError, match="reach >= 0, sample >= 1"):
    Windows(sample=0)
  with pytest.raises(checks.InputError, match="Unknown precision 'float16'"):
    Windows(precision="float16")


def test_windows_suit_their_sizes():
  assert serial_choice.suited(10**7, 1024) == serial_choice.Windows(window=64)
  assert serial_choice.suited(10**6, 256) == serial_choice.Windows()
  assert serial_choice.suited(5000, 256).stages == 1
