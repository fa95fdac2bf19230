"""Ranking metrics of held-out items, and their intervals. NumPy only.

Everything starts from one integer a user: the rank of the item that came
next, counted from 0, or -1 where it was not returned. With one target a user
recall@k is the share of users whose target stands among the first k, and the
ideal DCG is 1, so NDCG@k is 1 / log2(rank + 2) inside the first k, else 0.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int

from gr_jax.core.checks import InputError

RECALL_CUTOFFS = (1, 5, 10, 20)
NDCG_CUTOFFS = (5, 10, 20)
RECALL_10, NDCG_10 = "recall@10", "ndcg@10"
MRR, HIT_RATE, INVALID_RATE = "mrr", "hit_rate", "invalid_rate"
# All names that `per_user` returns, in the order of tables.
RANKING_METRICS = (
  *(f"recall@{k}" for k in RECALL_CUTOFFS),
  *(f"ndcg@{k}" for k in NDCG_CUTOFFS),
  MRR,
  HIT_RATE,
)
# Prefix of metrics on semantic codes: an item that shares them is a hit.
SID_LEVEL = "sid_level/"
NOT_RETURNED = -1


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its 95 % interval, and what varied to give the interval.

  `low` and `high` are NaN where `count` is too small for an interval.
  """

  mean: float
  low: float
  high: float
  count: int
  method: str

  @property
  def half_width(self) -> float:
    """Half the interval's length."""
    return (self.high - self.low) / 2


def target_ranks(
  item_index: Int[np.ndarray, "U W"], targets: Int[np.ndarray, "U"]
) -> Int[np.ndarray, "U"]:
  """Returns where each user's target stands in the returned list.

  An invalid entry (-1) keeps its place: a wasted place is a wasted place.

  >>> target_ranks(np.array([[7, 3], [-1, 3]]), np.array([3, 3])).tolist()
  [1, 1]

  Args:
    item_index: Returned items, best first; -1 names no item.
    targets: The item that came next, 0 or greater.

  Raises:
    InputError: A negative target, which would match invalid entries.
  """
  if targets.size and targets.min() < 0:
    raise InputError(
      f"Target item index {targets.min()} is negative; targets must name "
      "items of the catalog."
    )
  return _first_hit(item_index == targets[:, None])


def sid_ranks(
  codes: Int[np.ndarray, "U W L"],
  returned: Bool[np.ndarray, "U W"],
  target_codes: Int[np.ndarray, "U L"],
) -> Int[np.ndarray, "U"]:
  """Returns the rank of each target's codes among the distinct ones returned.

  This is the SID-level rank: all items of one semantic ID count as one, so
  it is at most the item-level rank and must be labelled wherever printed.

  Args:
    codes: Codes of the returned IDs, best first, cut by the caller to the
      levels that carry meaning (`SidCatalog.num_semantic_levels`).
    returned: False where the search returned nothing; those places do not
      count.
    target_codes: Codes of the items that came next, cut the same way.
  """
  num_users, width, num_levels = codes.shape
  rows = np.concatenate([codes.reshape(-1, num_levels), target_codes])
  number = _numbered(rows)
  listed = number[: num_users * width].reshape(num_users, width)
  wanted = number[num_users * width :]
  listed = np.where(returned, listed, -1)
  # First of its kind in its row: stable sort, then compare neighbours.
  order = np.argsort(listed, axis=1, kind="stable")
  ordered = np.take_along_axis(listed, order, axis=1)
  is_new = np.ones_like(returned)
  is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
  is_first = np.empty_like(returned)
  np.put_along_axis(is_first, order, is_new, axis=1)
  is_first &= returned
  place = _first_hit(listed == wanted[:, None])
  before = np.cumsum(is_first, axis=1) - is_first  # distinct IDs before
  ranks = np.take_along_axis(before, np.maximum(place, 0)[:, None], axis=1)
  return np.where(place >= 0, ranks[:, 0], NOT_RETURNED)


def invalid_rate(
  item_index: Int[np.ndarray, "U W"], returned: Bool[np.ndarray, "U W"]
) -> float:
  """Returns the share of returned semantic IDs that name no item."""
  num_returned = int(returned.sum())
  if not num_returned:
    return 0.0
  return float(((item_index < 0) & returned).sum() / num_returned)


def per_user(
  ranks: Int[np.ndarray, "U"],
  *,
  list_size: int,
  chances: Float[np.ndarray, "U"] | None = None,
) -> dict[str, np.ndarray]:
  """Returns every ranking metric as one float64 value a user [U].

  The mean over users is the metric.

  Args:
    ranks: Rank of each target from 0, -1 where it was not returned.
    list_size: Length of the lists. MRR and hit rate look no further, so
      that full rankings and beams compare; so must no cutoff.
    chances: How likely each target stands at its rank, where that is drawn
      (`shared_ids`); the values are then exact expectations.

  Raises:
    InputError: Lists shorter than a cutoff, which would understate it.
  """
  need = max(*RECALL_CUTOFFS, *NDCG_CUTOFFS)
  if list_size < need:
    raise InputError(
      f"Lists of {list_size} items cannot give recall@{need}; use a beam of "
      f"{need} or more."
    )
  found = (ranks >= 0) & (ranks < list_size)
  safe = np.where(found, ranks, 0).astype(np.float64)
  gain = found / np.log2(safe + 2.0)
  values = {f"recall@{k}": (found & (ranks < k)) * 1.0 for k in RECALL_CUTOFFS}
  values |= {f"ndcg@{k}": gain * (ranks < k) for k in NDCG_CUTOFFS}
  values[MRR] = found / (safe + 1.0)
  values[HIT_RATE] = found * 1.0
  if chances is not None:
    values = {name: value * chances for name, value in values.items()}
  return values


def summarize(
  ranks: Int[np.ndarray, "U"],
  *,
  list_size: int,
  user_mask: Bool[np.ndarray, "U"] | None = None,
  chances: Float[np.ndarray, "U"] | None = None,
) -> dict[str, float]:
  """Returns the mean of every ranking metric over users, or over some.

  Args:
    ranks: As for `per_user`.
    list_size: As for `per_user`.
    user_mask: Users to keep, e.g. those whose target fell on a later day.
    chances: As for `per_user`.

  Raises:
    InputError: No user left.
  """
  if user_mask is not None:
    ranks = ranks[user_mask]
    chances = None if chances is None else chances[user_mask]
  _check_some(ranks.size)
  values = per_user(ranks, list_size=list_size, chances=chances)
  return {name: float(value.mean()) for name, value in values.items()}


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
  """Returns each metric's mean over runs with Student's t interval.

  The interval covers what the seeds vary (initial values, batches, dropout,
  tokenizer), not the choice of users. One run has no interval.

  Raises:
    InputError: No run, or runs that report different metrics.
  """
  _check_some(len(runs), "run")
  for run in runs[1:]:
    if set(run) != set(runs[0]):
      odd = sorted(set(run) ^ set(runs[0]))[0]
      raise InputError(
        f"Not every run reports {odd!r}; evaluate all runs with one version."
      )
  return {
    name: student_interval(np.array([run[name] for run in runs], np.float64))
    for name in runs[0]
  }


def student_interval(values: Float[np.ndarray, "n"]) -> Estimate:
  """Returns the mean with Student's t 95 % interval of independent values."""
  count = values.size
  mean = float(values.mean())
  method = f"Student t over {count} seeds"
  if count < 2:
    return Estimate(mean, np.nan, np.nan, count, method)
  t = float(scipy.special.stdtrit(count - 1, 0.975))
  half = t * float(values.std(ddof=1)) / count**0.5
  return Estimate(mean, mean - half, mean + half, count, method)


def user_interval(values: Float[np.ndarray, "U"]) -> Estimate:
  """Returns one run's mean with the normal 95 % interval over users.

  It says how far another sample of users could move the figure, and nothing
  about another seed.

  Raises:
    InputError: No user.
  """
  _check_some(values.size)
  mean, count = float(values.mean()), values.size
  method = f"normal over {count} users"
  if count < 2:
    return Estimate(mean, np.nan, np.nan, count, method)
  half = 1.96 * float(values.std(ddof=1)) / count**0.5
  return Estimate(mean, mean - half, mean + half, count, method)


def bootstrap_interval(
  values: Float[np.ndarray, "U"],
  *,
  generator: np.random.Generator,
  num_resamples: int = 1000,
) -> Estimate:
  """Returns the mean with the percentile bootstrap 95 % interval over users.

  For few users or rare hits, where the normal interval is poor.

  Raises:
    InputError: No user.
  """
  _check_some(values.size)
  count = values.size
  means = np.empty(num_resamples)
  for i in range(num_resamples):  # one [U] draw at a time bounds the memory
    means[i] = values[generator.integers(count, size=count)].mean()
  low, high = np.quantile(means, [0.025, 0.975])
  return Estimate(
    float(values.mean()),
    float(low),
    float(high),
    count,
    f"bootstrap over {count} users",
  )


def paired_difference(
  values: Float[np.ndarray, "U"], others: Float[np.ndarray, "U"]
) -> Estimate:
  """Returns the mean of `values - others`, user by user, with its interval.

  Two systems judged on the same users share most of their luck, which a
  comparison of two separate intervals would count twice.
  """
  return user_interval(values - others)


def _numbered(rows: Int[np.ndarray, "M L"]) -> Int[np.ndarray, "M"]:
  """Returns a number of 0 or more for each row, equal for equal rows."""
  shifted = rows.astype(np.int64) - rows.min(initial=0)
  widths = (shifted.max(axis=0, initial=0) + 1).tolist()
  if math.prod(widths) >= 2**63:
    _, number = np.unique(rows, axis=0, return_inverse=True)
    return number.reshape(-1)
  number = np.zeros(len(rows), np.int64)
  for column, width in zip(shifted.T, widths, strict=True):
    number = number * width + column
  return number


def _check_some(count: int, what: str = "user") -> None:
  if not count:
    raise InputError(f"No {what} to evaluate; there is nothing to average.")


def _first_hit(hit: Bool[np.ndarray, "U W"]) -> Int[np.ndarray, "U"]:
  """Returns the column of each row's first True, -1 without one."""
  if not hit.shape[1]:
    return np.full(hit.shape[0], NOT_RETURNED)
  return np.where(hit.any(axis=1), hit.argmax(axis=1), NOT_RETURNED)
