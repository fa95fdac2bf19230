"""Codebook statistics worked by hand, and the retrieval hit rate."""

import numpy as np
import pytest

from gr_jax.tokenizers import codebook_stats as stats


def test_usage_and_entropy_by_hand():
  counts = stats.code_counts(np.array([0, 0, 2, 2, 2, 2, 3, 3]), 5)
  np.testing.assert_array_equal(counts, [2, 0, 4, 2, 0])
  assert stats.utilization(counts) == pytest.approx(3 / 5)
  assert stats.dead_codes(counts) == 2
  # p = 1/4, 1/2, 1/4: 1.5 bits.
  assert stats.entropy(counts) == pytest.approx(1.5 * np.log(2))
  assert stats.perplexity(counts) == pytest.approx(2**1.5)
  assert stats.top_share(counts) == pytest.approx(1 / 2)


@pytest.mark.parametrize("largest", [3, 5000, 2**31 - 1])
def test_ids_are_counted_in_sorted_order(largest):
  """By an index, by numbers, and as rows, where no number holds an ID."""
  generator = np.random.default_rng(0)
  codes = generator.integers(0, 4, (300, 3)).astype(np.int32)
  codes[codes == 3] = largest
  np.testing.assert_array_equal(
    stats.path_counts(codes),
    np.unique(codes, axis=0, return_counts=True)[1],
  )
  np.testing.assert_array_equal(
    stats.used_counts(codes[:, 0]),
    np.unique(codes[:, 0], return_counts=True)[1],
  )


@pytest.mark.parametrize(
  ("counts", "expected"),
  [
    ([5, 5, 5, 5], 0.0),
    ([0, 0, 0, 9], 3 / 4),
    # Lorenz curve of 1, 3: 1/4, 1. 2/2 * ((1/2 - 1/4) + (1 - 1)) = 1/4.
    ([3, 1], 1 / 4),
  ],
)
def test_gini_by_hand(counts, expected):
  assert stats.gini(np.array(counts)) == pytest.approx(expected)


def test_gini_is_half_the_relative_mean_difference():
  counts = np.random.default_rng(0).integers(0, 50, 40)
  pairs = np.abs(counts[:, None] - counts[None, :]).mean()
  assert stats.gini(counts) == pytest.approx(pairs / (2 * counts.mean()))


def test_collisions_by_hand():
  codes = np.array([[0, 1], [0, 1], [0, 2], [1, 1], [1, 1], [1, 1]])
  assert stats.collision_rate(codes) == pytest.approx(5 / 6)
  assert stats.independent_coding_rate(codes) == pytest.approx(1 / 6)
  assert stats.bucket_sizes(codes) == {1: 1, 2: 1, 3: 1}
  assert stats.id_statistics(codes)["largest_bucket"] == 3
  assert stats.id_statistics(codes)["distinct_ids"] == 3


def test_branching_by_hand():
  # Code 0 is followed by two codes, code 1 by one: H = 1/2 log 2.
  codes = np.array([[0, 0], [0, 1], [1, 2], [1, 2]])
  assert stats.conditional_branching(codes, 0) == pytest.approx(2.0)
  assert stats.conditional_branching(codes, 1) == pytest.approx(2**0.5)
  levels = stats.level_statistics(codes, (2, 4))
  assert [level["distinct_paths"] for level in levels] == [2, 3]
  assert levels[1]["path_share"] == pytest.approx(3 / 8)


def test_reconstruction_by_hand():
  x = np.array([[1.0, 0.0], [0.0, 3.0]], np.float32)
  decoded = np.array([[2.0, 0.0], [0.0, 0.0]], np.float32)
  assert stats.reconstruction_mse(x, decoded) == pytest.approx((1 + 9) / 2)
  # Around the mean (0.5, 1.5): each row is 0.25 + 2.25 away.
  assert stats.relative_mse(x, decoded) == pytest.approx(5 / 2.5)
  assert stats.reconstruction_cosine(x, decoded) == pytest.approx(0.5)


def test_hit_rate_by_hand():
  # Items on a circle at 0, 10, 20 and 90 degrees.
  angle = np.deg2rad([0, 10, 20, 90])
  vectors = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
  rates = stats.hit_rate(
    vectors, np.array([0, 0, 3]), np.array([1, 2, 0]), at=(1, 2, 3)
  )
  # Ranks 0, 1 and 2.
  assert rates == {
    "hit_rate@1": pytest.approx(1 / 3),
    "hit_rate@2": pytest.approx(2 / 3),
    "hit_rate@3": pytest.approx(1.0),
  }


def test_hit_rate_agrees_with_sorting_and_chunks_do_not_matter():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(40, 5)).astype(np.float32)
  queries, targets = rng.integers(0, 40, 70), rng.integers(0, 40, 70)
  keep = queries != targets
  queries, targets = queries[keep], targets[keep]
  unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
  hits = 0
  for q, t in zip(queries, targets, strict=True):
    scores = unit @ unit[q]
    scores[q] = -np.inf
    hits += t in np.argsort(-scores, kind="stable")[:5]
  for chunk_size in (7, 512):
    rate = stats.hit_rate(
      vectors, queries, targets, at=(5,), chunk_size=chunk_size
    )
    assert rate["hit_rate@5"] == pytest.approx(hits / len(queries))


def test_unused_codes_need_not_be_listed():
  codes = np.array([0, 0, 2, 2, 2, 2, 3, 3])
  dense, used = stats.code_counts(codes, 9), stats.used_counts(codes)
  assert stats.gini(used, 9) == pytest.approx(stats.gini(dense))
  assert stats.utilization(used, 9) == stats.utilization(dense)
  assert stats.dead_codes(used, 9) == stats.dead_codes(dense) == 6
  # A level of 2^31 - 1 codes is described without listing them.
  level = stats.level_statistics(codes[:, None], (2**31 - 1,))[0]
  assert level["dead_codes"] == 2**31 - 4
  level = stats.level_statistics(codes[:, None], (9,))[0]
  assert level["counts_std"] == pytest.approx(dense.std())
