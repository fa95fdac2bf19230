import math

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.evaluation import metrics


def test_ranks_and_metrics_by_hand():
  item_index = np.array([[4, 7, 1], [2, -1, 9], [5, 6, 8]])
  ranks = metrics.target_ranks(item_index, np.array([4, 9, 0]))
  # First place; third place, the invalid entry keeping the second; missed.
  np.testing.assert_array_equal(ranks, [0, 2, -1])
  got = metrics.summarize(ranks, list_size=20)
  assert got["recall@1"] == pytest.approx(1 / 3)
  assert got["recall@5"] == got["hit_rate"] == pytest.approx(2 / 3)
  # 1 / log2(0 + 2) = 1 and 1 / log2(2 + 2) = 1 / 2.
  assert got["ndcg@10"] == pytest.approx(1.5 / 3)
  assert got["mrr"] == pytest.approx((1 + 1 / 3) / 3)
  assert tuple(got) == metrics.RANKING_METRICS


def test_cutoffs_are_exclusive_of_rank_k():
  got = metrics.summarize(np.array([10, 9, 4, 5, 0, 1]), list_size=20)
  assert got["recall@10"] == pytest.approx(5 / 6)
  assert got["recall@5"] == pytest.approx(3 / 6)
  assert got["recall@1"] == pytest.approx(1 / 6)
  want = sum(1 / math.log2(r + 2) for r in (4, 0, 1)) / 6
  assert got["ndcg@5"] == pytest.approx(want)


def test_nothing_beyond_the_list_counts():
  got = metrics.summarize(np.array([30, 19]), list_size=20)
  assert got["mrr"] == pytest.approx(1 / 20 / 2)
  assert got["hit_rate"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_against_a_slow_version(seed):
  rng = np.random.default_rng(seed)
  item_index = np.stack([rng.permutation(60)[:25] for _ in range(40)])
  item_index[rng.random(item_index.shape) < 0.1] = -1
  targets = rng.integers(60, size=40)
  got = metrics.summarize(
    metrics.target_ranks(item_index, targets), list_size=25
  )
  recall, ndcg, mrr = 0.0, 0.0, 0.0
  for row, target in zip(item_index.tolist(), targets.tolist(), strict=True):
    recall += target in row[:10]
    gains = [float(item == target) for item in row[:10]]
    ndcg += sum(g / math.log2(i + 2) for i, g in enumerate(gains))
    mrr += 1 / (row.index(target) + 1) if target in row else 0
  assert got["recall@10"] == pytest.approx(recall / 40)
  assert got["ndcg@10"] == pytest.approx(ndcg / 40)
  assert got["mrr"] == pytest.approx(mrr / 40)


def test_masks_split_the_users_exactly():
  ranks = np.array([0, 3, -1, 12, 7])
  later = np.array([True, False, True, False, False])
  values = [
    metrics.summarize(ranks, list_size=20, user_mask=m)["ndcg@10"] * m.sum()
    for m in (later, ~later)
  ]
  whole = metrics.summarize(ranks, list_size=20)["ndcg@10"]
  assert sum(values) == pytest.approx(whole * 5)


def test_sid_ranks_count_each_id_once():
  codes = np.array(
    [
      [[1, 1], [1, 1], [2, 2], [3, 3]],
      [[1, 1], [1, 1], [1, 1], [2, 2]],
      [[5, 5], [6, 6], [7, 7], [7, 7]],
      [[5, 5], [6, 6], [7, 7], [8, 8]],
    ]
  )
  returned = np.ones((4, 4), bool)
  returned[3, 3] = False
  targets = np.array([[3, 3], [1, 1], [7, 7], [8, 8]])
  ranks = metrics.sid_ranks(codes, returned, targets)
  np.testing.assert_array_equal(ranks, [2, 0, 2, -1])


@pytest.mark.parametrize("seed", range(5))
def test_sid_ranks_against_a_slow_version(seed):
  rng = np.random.default_rng(seed)
  codes = rng.integers(3, size=(50, 12, 2))
  returned = rng.random((50, 12)) < 0.8
  targets = rng.integers(3, size=(50, 2))
  want = []
  for user in range(50):
    distinct = []
    for w in range(12):
      code = codes[user, w].tolist()
      if returned[user, w] and code not in distinct:
        distinct.append(code)
    target = targets[user].tolist()
    want.append(distinct.index(target) if target in distinct else -1)
  got = metrics.sid_ranks(codes, returned, targets)
  np.testing.assert_array_equal(got, want)
  # Codes too large to be numbered by their digits are sorted.
  huge = 1 << 40
  got = metrics.sid_ranks(codes * huge, returned, targets * huge)
  np.testing.assert_array_equal(got, want)


def test_invalid_rate_ignores_places_without_a_result():
  item_index = np.array([[3, -1, -1], [2, 5, -1]])
  returned = np.array([[True, True, False], [True, True, False]])
  assert metrics.invalid_rate(item_index, returned) == 0.25
  assert metrics.invalid_rate(item_index, np.zeros((2, 3), bool)) == 0.0


def test_student_interval_by_hand():
  # Mean 2, deviation 1, t(2) = 4.3027: half width 4.3027 / sqrt(3).
  got = metrics.over_seeds([{"a": 1.0}, {"a": 2.0}, {"a": 3.0}])["a"]
  assert got.mean == 2.0
  assert got.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
  assert got.low == pytest.approx(got.mean - got.half_width)
  assert got.method == "Student t over 3 seeds"
  assert math.isnan(metrics.over_seeds([{"a": 1.0}])["a"].low)


def test_user_intervals_cover_the_truth():
  rng = np.random.default_rng(0)
  covered, agree = 0, []
  for _ in range(400):
    values = (rng.random(300) < 0.2).astype(np.float64)
    normal = metrics.user_interval(values)
    covered += normal.low <= 0.2 <= normal.high
  for _ in range(5):
    values = (rng.random(2000) < 0.2).astype(np.float64)
    boot = metrics.bootstrap_interval(values, generator=rng)
    normal = metrics.user_interval(values)
    agree.append(boot.half_width / normal.half_width)
  # 95 % of 400, standard error 4.4.
  assert abs(covered - 380) <= 16
  np.testing.assert_allclose(agree, 1.0, atol=0.12)


def test_paired_difference_is_tighter_than_two_intervals():
  rng = np.random.default_rng(1)
  base = (rng.random(5000) < 0.1).astype(np.float64)
  better = np.maximum(base, (rng.random(5000) < 0.005) * 1.0)
  difference = metrics.paired_difference(better, base)
  assert difference.low > 0
  assert metrics.user_interval(better).low < metrics.user_interval(base).high


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: metrics.target_ranks(np.array([[1]]), np.array([-1])),
      "index -1 is negative",
    ),
    (
      lambda: metrics.per_user(np.array([0]), list_size=10),
      r"Lists of 10 items cannot give recall@20",
    ),
    (
      lambda: metrics.summarize(
        np.array([0]), list_size=20, user_mask=np.array([False])
      ),
      "No user to evaluate",
    ),
    (lambda: metrics.over_seeds([]), "No run to evaluate"),
    (
      lambda: metrics.over_seeds([{"a": 1.0}, {"a": 1.0, "b": 2.0}]),
      "Not every run reports 'b'",
    ),
    (lambda: metrics.user_interval(np.zeros(0)), "No user to evaluate"),
    (
      lambda: metrics.bootstrap_interval(
        np.zeros(0), generator=np.random.default_rng(0)
      ),
      "No user to evaluate",
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(InputError, match=message):
    call()
