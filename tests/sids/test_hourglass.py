"""Middle levels whose codes are left out."""

import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.sids.hourglass import Hourglass, report
from gr_jax.sids.sid_catalog import SidCatalog

CODES = np.array(
  [[0, 2, 1], [1, 2, 0], [0, 2, 2], [2, 0, 1], [1, 0, 1], [2, 1, 0]], np.int32
)
SIZES = (3, 4, 3)


def test_figures_by_hand():
  levels = report(CODES, SIZES)
  # Level 1: three, two, one and no item.
  p = np.array([3, 2, 1]) / 6
  np.testing.assert_allclose(levels[1]["entropy"], -np.sum(p * np.log(p)))
  np.testing.assert_allclose(levels[1]["counts_std"], np.std([2, 1, 3, 0]))
  assert levels[1]["top_share"] == 0.5
  assert levels[1]["path_share"] == 5 / 12
  # Lorenz curve of (0, 1, 2, 3): 0, 1/6, 1/2, 1 against 1/4, 1/2, 3/4, 1.
  np.testing.assert_allclose(levels[1]["gini"], (1 / 4 + 1 / 3 + 1 / 4) / 2)


def test_the_most_used_codes_are_removed():
  remedy = Hourglass(remove_top_codes=1)
  removed = remedy.removed_codes(CODES, SIZES)
  assert removed.tolist() == [2]
  codes, sizes = remedy.apply(CODES, SIZES, removed)
  assert codes.tolist()[:2] == [[0, -1, 1], [1, -1, 0]]
  assert codes[3:].tolist() == CODES[3:].tolist()
  assert sizes == SIZES
  catalog = SidCatalog.from_levels(
    "abcdef", codes, sizes, num_semantic_levels=3
  )
  assert catalog.lengths.tolist() == [2, 2, 2, 3, 3, 3]
  np.testing.assert_array_equal(catalog.semantic_codes(catalog.codes), codes)


def test_a_level_is_dropped():
  remedy = Hourglass(drop_level=1)
  codes, sizes = remedy.apply(CODES, SIZES, remedy.removed_codes(CODES, SIZES))
  assert sizes == (3, 3)
  np.testing.assert_array_equal(codes, CODES[:, [0, 2]])


def test_nothing_is_the_default():
  removed = Hourglass().removed_codes(CODES, SIZES)
  codes, sizes = Hourglass().apply(CODES, SIZES, removed)
  assert codes is CODES
  assert sizes == SIZES


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(drop_level=-1), "got -1 and 0"),
    (dict(drop_level=1, remove_top_codes=2), "set one of them to 0"),
    (dict(drop_level=2), "drop_level=2 must be a middle level of 3"),
    (dict(remove_top_codes=1, remove_level=0), "remove_level=0 must be"),
    (dict(remove_top_codes=3), "nothing of the 3 used codes of level 1"),
  ],
)
def test_impossible_options_are_refused(options, message):
  def use():
    remedy = Hourglass(**options)
    remedy.apply(CODES, SIZES, remedy.removed_codes(CODES, SIZES))

  with pytest.raises(checks.InputError, match=message):
    use()
