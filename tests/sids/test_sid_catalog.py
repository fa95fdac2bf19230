import dataclasses

import numpy as np
import pytest

from gr_jax.core import artifact, checks
from gr_jax.sids import sid_catalog
from gr_jax.sids.sid_catalog import SidCatalog


def catalog(codes, sizes, **options):
  codes = np.array(codes, np.int32)
  options.setdefault("num_semantic_levels", 1)
  ids = options.pop("item_ids", tuple(f"i{n}" for n in range(len(codes))))
  return SidCatalog(item_ids=ids, codes=codes, codebook_sizes=sizes, **options)


def test_lookups_by_hand():
  fixed = catalog([[0, 1], [2, 0], [2, 1]], (3, 2))
  assert (fixed.num_items, fixed.num_levels) == (3, 2)
  assert fixed.index_of("i2") == 2
  assert fixed.items_of((2, 0)) == (1,)
  assert fixed.items_of((1, 1)) == ()
  assert fixed.items_of((2, 0, 0)) == ()
  assert not fixed.is_variable_length
  np.testing.assert_array_equal(fixed.lengths, [2, 2, 2])
  shorter = catalog([[0, 1], [2, -1]], (3, 2))
  assert shorter.is_variable_length
  np.testing.assert_array_equal(shorter.lengths, [2, 1])
  assert shorter.items_of((2,)) == (1,)
  shared = catalog([[0, 1], [0, 1]], (3, 2), shares_ids=True)
  assert shared.items_of((0, 1)) == (0, 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("skip", [False, True])
def test_arrays_round_trip(tmp_path, seed, skip):
  rng = np.random.default_rng(seed)
  sizes = (7, 300, 5)
  codes = rng.integers(0, sizes, (40, 3), dtype=np.int32)
  if skip:
    codes[rng.random(40) < 0.5, 1] = -1
  before = SidCatalog.from_levels(
    [f"ä{n}" for n in range(40)],
    codes,
    sizes,
    num_semantic_levels=3,
    hierarchical=bool(seed % 2),
    shares_ids=True,
  )
  folder = tmp_path / "sids"
  artifact.save(folder, kind="sids", config={}, arrays=before.to_arrays())
  after = SidCatalog.from_arrays(artifact.load(folder, kind="sids").arrays)
  for field in dataclasses.fields(SidCatalog):
    np.testing.assert_array_equal(
      getattr(before, field.name), getattr(after, field.name), field.name
    )
  assert after.codes.dtype == np.int32
  assert before.to_arrays()["codes"].itemsize == 2  # 312 codes: two bytes


def test_packing_closes_gaps_by_hand():
  # Levels of 4, 5, 6, 2 codes begin at 0, 4, 9, 15 in the space of all.
  codes = np.array([[1, 2, 3, 0], [1, -1, 3, 1], [1, -1, -1, 1]], np.int32)
  packed, sizes, starts = sid_catalog.pack_levels(codes, (4, 5, 6, 2))
  assert starts == (0, 4, 9, 15)
  # Level 2's 3 is number 9 + 3 overall, number 8 from column 1's start;
  # level 3's 1 is number 16, so 7 in column 2 and 12 in column 1.
  np.testing.assert_array_equal(
    packed, [[1, 2, 3, 0], [1, 8, 7, -1], [1, 12, -1, -1]]
  )
  assert sizes == (4, 13, 8, 2)  # columns 1 and 2 reach to the end, 17


@pytest.mark.parametrize("seed", range(5))
def test_packing_is_inverted_and_keeps_ids_distinct(seed):
  rng = np.random.default_rng(seed)
  sizes = (3, 2, 4, 3)
  codes = rng.integers(-1, sizes, (200, 4), dtype=np.int32)
  codes[:, 0] = np.maximum(codes[:, 0], 0)
  packed, columns, starts = sid_catalog.pack_levels(codes, sizes)
  again, level_sizes = sid_catalog.unpack_levels(packed, columns, starts)
  np.testing.assert_array_equal(again, codes)
  assert level_sizes == sizes
  distinct = {tuple(row) for row in codes.tolist()}
  assert len({tuple(row) for row in packed.tolist()}) == len(distinct)
  assert (packed < np.array(columns)).all()


def test_full_codes_are_not_touched():
  codes = np.array([[1, 2]], np.int32)
  packed, sizes, starts = sid_catalog.pack_levels(codes, (4, 5))
  assert packed is codes
  assert (sizes, starts) == ((4, 5), None)


@pytest.mark.parametrize(
  ("codes", "sizes", "options", "message"),
  [
    ([[0], [3]], (3,), {}, r"Code 3 of item index 1 at level 0 .* of 3"),
    ([[0], [-2]], (3,), {}, r"Code -2 of item index 1"),
    ([[-1, -1], [0, 0]], (3, 2), {}, r"index 0 has an empty semantic ID"),
    ([[0, -1, 1]], (3, 2, 2), {}, r"\(0, -1, 1\) of item index 0 has a gap"),
    ([[0], [0]], (3,), {}, r"2 of 2 items share .* up to 2 on \(0,\)"),
    ([[0], [1]], (3,), {"item_ids": ("a", "a")}, r"'a' appears twice"),
    ([[0], [1]], (3,), {"item_ids": ("a",)}, r"1 item ids for 2 rows"),
    ([[0]], (3, 2), {}, r"\(3, 2\) must name one size for each of the 1"),
    ([[0]], (3,), {"num_semantic_levels": 2}, r"=2 must lie in 1\.\.1"),
    ([[0, 0]], (3, 2), {"level_starts": (0, 0)}, r"\(0, 0\) must rise"),
  ],
)
def test_broken_catalogs_are_refused(codes, sizes, options, message):
  with pytest.raises(checks.InputError, match=message):
    catalog(codes, sizes, **options)


def test_unknown_item_is_refused():
  with pytest.raises(checks.InputError, match=r"'x' is not among the 1 items"):
    catalog([[0]], (1,)).index_of("x")
