"""What the rows of the comparison are made of; the whole: tests/e2e."""

import numpy as np
import pytest

from gr_jax.evaluation import shared_ids
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import retrieval


def test_overlap_by_hand():
  exact = np.array([[3, 1, 2], [5, -1, -1]])
  # Two of three, the one there is; places without items never match.
  found = np.array([[1, 3, -1], [-1, 4, 5]])
  assert retrieval.overlap(found, exact) == pytest.approx((2 / 3 + 1) / 2)


def test_rank_ids_by_hand():
  # Items 0 and 3 share the ID (1, 0); item 2 cannot come.
  catalog = SidCatalog(
    item_ids=tuple("abcde"),
    codes=np.array([[1, 0], [0, 1], [0, 0], [1, 0], [0, 2]], np.int32),
    codebook_sizes=(2, 3),
    num_semantic_levels=2,
    hierarchical=True,
    shares_ids=True,
  )
  can_come = np.array([True, True, False, True, True])
  buckets = shared_ids.Buckets.create(catalog, can_come)
  scores = np.array([[-1, -2, 0, -1, -2], [-1, -np.inf, 0, -1, -3]], np.float32)
  removed = np.array([[-1, -1], [0, 4]], np.int32)
  ranked = retrieval.rank_ids(scores, removed, buckets, 4)
  # Equal scores: (0, 1) before (0, 2). With item 0 gone item 3 stands in.
  assert ranked.tolist() == [[0, 1, 4, -1], [3, -1, -1, -1]]
