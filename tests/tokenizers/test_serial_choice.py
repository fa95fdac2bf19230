"""Choosing in windows against choosing in turn, on data of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.core import checks, pallas_gpu
from gr_jax.core import mesh as meshes
from gr_jax.tokenizers import (
  balanced,
  candidate_lists,
  select,
  serial_choice,
  turn_kernels,
)
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


@pytest.mark.parametrize("kernel", [False, True])
def test_lists_are_in_order_and_whole(monkeypatch, kernel):
  monkeypatch.setattr(turn_kernels, "_WORDS", 32)  # 2 pieces of 61 words
  rng = np.random.default_rng(0)
  num_rows = 61 * candidate_lists.WORD * (1 if kernel else 8)
  scores = rng.normal(size=(3, num_rows)).astype(np.float32)
  limit = np.array([-9.0, 0.0, 2.0], np.float32)
  free = rng.random(num_rows) < 0.7
  masks = candidate_lists.masks_within(*map(jnp.asarray, (scores, limit, free)))
  if kernel:
    items, count = turn_kernels.set_bits(masks, 1000, interpret=True)
  else:
    items, count = candidate_lists.set_bits(masks, 1000)
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


def test_a_bound_by_one_kernel_is_the_one_by_counting():
  rng = np.random.default_rng(0)
  values = rng.gamma(0.5, size=(6, 333)).astype(np.float32)
  values[1], values[2, 7:] = 2.5, np.inf
  bits = jnp.asarray(values.view(np.int32))
  rank = jnp.asarray([1, 100, 9, 332, 333, 2**31 - 1], jnp.int32)
  np.testing.assert_array_equal(
    turn_kernels.upper_bound(bits, rank, interpret=True),
    select.upper_bound(bits, rank),
  )


@pytest.mark.parametrize("size", [16, 1024])
def test_who_asks_first_does_not_matter(monkeypatch, size):
  # By hand: both want item 5; row 1 goes on to 7, and has 2 none else took.
  monkeypatch.setattr(turn_kernels, "_MOST_SLOTS", size)
  lists = jnp.asarray([[5, 3, 2, -1], [5, 2, 7, 1]], jnp.int32)
  marks, _ = turn_kernels.settle(
    lists,
    jnp.asarray([2, 2], jnp.int32),
    jnp.full((8,), 99, jnp.int32),
    jnp.int32(40),
    interpret=True,
  )
  assert marks.tolist() == [99, 99, 41, 40, 99, 40, 99, 41]
  rng = np.random.default_rng(0)
  lists = np.stack([rng.permutation(300)[:100] for _ in range(9)])
  lists[3, 20:] = -1  # finds too few
  given = (
    jnp.asarray(lists, jnp.int32),
    jnp.asarray([25, 30, 0, 30, 30, 20, 30, 30, 30], jnp.int32),
    jnp.full((300,), 2**30, jnp.int32),
    jnp.int32(1000),
  )
  np.testing.assert_array_equal(
    turn_kernels.settle(*given, interpret=True)[0],
    serial_choice._settle(*given)[0],
  )


def test_kernels_choose_as_plain_forms(monkeypatch):
  calls = []

  def interpreted(_, kernel, plain, *operands, fits=True):
    calls.append(getattr(kernel, "func", kernel))
    return kernel(*operands, interpret=True)

  monkeypatch.setattr(serial_choice, "_on_cuda", interpreted)
  for kind in ("whole", "ties", "one point"):
    given = case(kind, 5, 700, 13)
    found = choose(*given, SMALL)
    np.testing.assert_array_equal(found.codes, sorted_assign(*given))
  names = ("upper_bound", "set_bits", "settle")
  assert set(calls) == {getattr(turn_kernels, name) for name in names}


def test_other_platforms_take_the_plain_forms(monkeypatch):
  # Traced for a GPU, lowered for both.
  monkeypatch.setattr(pallas_gpu, "is_known_device", lambda: True)
  given = case("whole", 6, 600, 11)
  traced = serial_choice.choose.trace(*map(jnp.asarray, given), windows=SMALL)
  assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
  found = choose(*given, SMALL)
  np.testing.assert_array_equal(found.codes, sorted_assign(*given))
