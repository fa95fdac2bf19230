"""Verdicts on published claims follow the intervals."""

import itertools

import numpy as np
import pytest
import scipy.stats

from gr_jax.evaluation import claims
from gr_jax.evaluation.claims import DEPENDS, DID_NOT_HOLD, HELD, NOT_DECIDED


def test_interval_of_a_difference_by_hand():
  first, second = np.array([3.0, 4.0, 5.0]), np.array([1.0, 1.5, 2.0, 1.5])
  found = claims.difference(first, second)
  variances = first.var(ddof=1) / 3, second.var(ddof=1) / 4
  freedom = sum(variances) ** 2 / (
    variances[0] ** 2 / 2 + variances[1] ** 2 / 3
  )
  half = scipy.stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
  np.testing.assert_allclose(
    [found.low, found.high], [2.5 - half, 2.5 + half], rtol=1e-6
  )


def test_replicas_that_are_the_same_networks_are_compared_one_by_one():
  first = np.array([0.052, 0.042, 0.061])
  # They differ far less from their twins than from each other.
  found = claims.difference(first, first - [0.001, 0.001, 0.002], paired=True)
  half = scipy.stats.t.ppf(0.975, 2) * (0.001 / 3)
  np.testing.assert_allclose(
    [found.low, found.high], [0.004 / 3 - half, 0.004 / 3 + half], rtol=1e-6
  )
  same = claims.difference(first, first, paired=True)
  assert same.verdict(level=True) == HELD
  assert same.verdict(level=False) == NOT_DECIDED


@pytest.mark.parametrize(
  ("low", "high", "above", "level"),
  [
    (0.2, 0.3, HELD, DID_NOT_HOLD),
    (-0.3, -0.2, DID_NOT_HOLD, DID_NOT_HOLD),
    (-0.1, 0.3, NOT_DECIDED, NOT_DECIDED),
    (0.01, 0.04, HELD, HELD),
    (-0.04, 0.04, NOT_DECIDED, HELD),
  ],
)
def test_verdicts(low, high, above, level):
  found = claims.Difference(first=1.0, second=1.0, low=low, high=high)
  assert found.verdict(level=False) == above
  assert found.verdict(level=True) == level


def test_one_replica_decides_nothing():
  found = claims.difference(np.array([0.9]), np.array([0.1]))
  assert found.verdict(level=False) == NOT_DECIDED
  assert found.verdict(level=True) == NOT_DECIDED


def test_verdict_over_data_sets():
  claim = claims.CLAIMS[0]
  up = claims.Difference(1.0, 0.5, 0.4, 0.6)
  down = claims.Difference(0.5, 1.0, -0.6, -0.4)
  either = claims.Difference(1.0, 1.0, -0.1, 0.1)
  assert claims.verdict(claim, {"a": up, "b": up}) == HELD
  assert claims.verdict(claim, {"a": up, "b": down}) == (
    f"{DEPENDS}: held on a, did not hold on b"
  )
  assert claims.verdict(claim, {"a": up, "b": either, "c": up}) == (
    "held on a and c, not decided on b"
  )
  assert claims.verdict(claim, {"a": either, "b": either}) == NOT_DECIDED
  assert claims.verdict(claim, {}) == claims.NOT_MEASURED


def test_rank_correlation():
  rho, p = claims.rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0])
  assert rho == pytest.approx(1.0)
  # Of 24 orders this one and its reverse; the t distribution would say 0.
  assert p == pytest.approx(2 / 24)
  assert np.isnan(claims.rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])[0])


def test_chance_of_a_rank_correlation_counts_orders():
  measure, metric = [1.0, 2.0, 2.0, 3.0, 7.0], [0.3, 0.1, 0.4, 0.5, 0.5]
  rho, p = claims.rank_correlation(measure, metric)
  orders = [
    scipy.stats.spearmanr(measure, order).statistic
    for order in itertools.permutations(metric)
  ]
  assert p == np.mean(np.abs(orders) >= abs(rho) - 1e-9)
  many = (
    [float(v) for v in range(9)],
    [4.0, 0.0, 2.0, 5.0, 3.0, 1.0, 8.0, 7.0, 6.0],
  )
  expected = scipy.stats.spearmanr(*many).pvalue
  assert claims.rank_correlation(*many)[1] == expected
