"""What publications say about semantic IDs, and whether it holds here."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from gr_jax.evaluation import metrics

HELD, DID_NOT_HOLD, DEPENDS = "held", "did not hold", "depends"
NOT_DECIDED, NOT_MEASURED = "not decided", "not measured"
# Two systems are level when they differ by at most this share of the second.
LEVEL_MARGIN = 0.05
# Up to so many points a p-value counts all orders of them.
_EXACT_POINTS = 8

_GRID = "GRID handbook (CIKM 2025), Beauty R@10"
Cell = tuple[str, str]  # grid, name


@dataclasses.dataclass(frozen=True)
class Claim:
  """One published comparison of two cells.

  Attributes:
    text: What is claimed.
    source: Who claims it, and on what.
    first: The cell that is claimed to be above, or level with, the second.
    second: The other cell.
    published: Their published figures, where there are any.
    level: Whether the claim is that the two do about equally well.
  """

  text: str
  source: str
  first: Cell
  second: Cell
  published: tuple[float, float] | None = None
  level: bool = False


CLAIMS = (
  Claim(
    "Residual k-means beats RQ-VAE.",
    _GRID,
    ("tokenizer", "residual_kmeans"),
    ("tokenizer", "rq_vae"),
    (0.0639, 0.0593),
  ),
  Claim(
    "Residual k-means and R-VQ are level.",
    _GRID,
    ("tokenizer", "residual_kmeans"),
    ("tokenizer", "rvq"),
    (0.0639, 0.0638),
    level=True,
  ),
  Claim(
    "RQ-VAE codes beat LSH codes.",
    "TIGER (arXiv:2305.05065)",
    ("tokenizer", "rq_vae"),
    ("tokenizer", "lsh"),
  ),
  Claim(
    "LSH codes beat random codes.",
    "TIGER (arXiv:2305.05065)",
    ("tokenizer", "lsh"),
    ("tokenizer", "random"),
  ),
  Claim(
    "Every prefix as an example beats one example a user.",
    _GRID,
    ("history", "prefixes"),
    ("history", "none"),
    (0.0597, 0.0447),
  ),
  Claim(
    "No user tokens beat 2,000 of them.",
    _GRID,
    ("history", "0_user_tokens"),
    ("history", "2000_user_tokens"),
    (0.0618, 0.0597),
  ),
  Claim(
    "An encoder-decoder beats a decoder alone.",
    _GRID,
    ("backbone", "encoder_decoder"),
    ("backbone", "decoder_only_untied"),
    (0.0597, 0.0438),
  ),
  Claim(
    "An extra level and a random item among those that share are level.",
    _GRID,
    ("collisions", "extra_level"),
    ("collisions", "random_item"),
    (0.0597, 0.0591),
    level=True,
  ),
  Claim(
    "Random last-level codes resolve collisions better than the nearest ones.",
    "FORGE",
    ("collisions", "random_last_level"),
    ("collisions", "knn"),
  ),
  Claim(
    "Constrained and free beam search are level.",
    _GRID,
    ("decoding", "constrained_beam_50"),
    ("decoding", "free_beam_50"),
    (0.0597, 0.0609),
    level=True,
  ),
  Claim(
    "256 codes a level beat 128.",
    _GRID,
    ("shape", "3x256"),
    ("shape", "3x128"),
    (0.0639, 0.0617),
  ),
  Claim(
    "512 codes a level are level with 256.",
    _GRID,
    ("shape", "3x512"),
    ("shape", "3x256"),
    (0.0631, 0.0639),
    level=True,
  ),
  Claim(
    "3 levels beat 5.",
    _GRID,
    ("shape", "3x256"),
    ("shape", "5x256"),
    (0.0639, 0.0596),
  ),
  Claim(
    "Evenly filled codebooks beat free ones (residual k-means).",
    "motive of Algorithm 1, OneRec (arXiv:2502.18965)",
    ("balance", "kmeans_balanced"),
    ("balance", "kmeans_free"),
  ),
  Claim(
    "Evenly filled codebooks beat free ones (by Sinkhorn's transport).",
    "motive of Sinkhorn assignment (LC-Rec, SaviorRec)",
    ("balance", "kmeans_sinkhorn"),
    ("balance", "kmeans_free"),
  ),
  Claim(
    "Dropping the middle level beats keeping it.",
    "Kuai et al. 2024 (arXiv:2407.21488)",
    ("hourglass", "middle_dropped"),
    ("hourglass", "as_is"),
  ),
  Claim(
    "Removing the middle level's fullest codes beats keeping them.",
    "Kuai et al. 2024 (arXiv:2407.21488)",
    ("hourglass", "top_codes_removed"),
    ("hourglass", "as_is"),
  ),
)


@dataclasses.dataclass(frozen=True)
class Difference:
  """How far a first cell is above a second, with a 95 % interval.

  `low` and `high` are NaN where a cell has one replica only.
  """

  first: float
  second: float
  low: float
  high: float

  def verdict(self, *, level: bool) -> str:
    """Returns `HELD`, `DID_NOT_HOLD` or `NOT_DECIDED`."""
    if np.isnan(self.low):
      return NOT_DECIDED
    if not level:
      if self.low > 0:
        return HELD
      return DID_NOT_HOLD if self.high < 0 else NOT_DECIDED
    margin = LEVEL_MARGIN * self.second
    if -margin <= self.low and self.high <= margin:
      return HELD
    apart = self.low > margin or self.high < -margin
    return DID_NOT_HOLD if apart else NOT_DECIDED


def difference(
  first: Float[np.ndarray, "n"],
  second: Float[np.ndarray, "m"],
  *,
  paired: bool = False,
) -> Difference:
  """Compares the replicas of two cells by a t interval.

  Args:
    first: The first cell's values, one a replica.
    second: The second's.
    paired: Whether replicas are the same networks in both, as where only the
      decoding differs: their differences count. Else Welch's interval.
  """
  low = high = float("nan")
  if paired:
    found = metrics.student_interval(first - second)
    low, high = found.low, found.high
  elif min(first.size, second.size) > 1:
    if np.ptp(first) == np.ptp(second) == 0:  # no spread, no t
      low = high = float(first[0] - second[0])
    else:
      interval = scipy.stats.ttest_ind(
        first, second, equal_var=False
      ).confidence_interval(0.95)
      low, high = float(interval.low), float(interval.high)
  return Difference(float(first.mean()), float(second.mean()), low, high)


def verdict(claim: Claim, found: Mapping[str, Difference]) -> str:
  """Returns the verdict over several data sets.

  Args:
    claim: The claim.
    found: The comparison on each data set where both cells were run.

  Returns:
    `NOT_MEASURED` without any. Where verdicts differ, each with the names of
    its data sets, after `DEPENDS` if it held on one and did not on another.
  """
  if not found:
    return NOT_MEASURED
  names: dict[str, list[str]] = {}
  for name, each in found.items():
    names.setdefault(each.verdict(level=claim.level), []).append(name)
  if len(names) == 1:
    return next(iter(names))
  text = ", ".join(f"{v} on {' and '.join(n)}" for v, n in names.items())
  return f"{DEPENDS}: {text}" if {HELD, DID_NOT_HOLD} <= names.keys() else text


def rank_correlation(
  measure: Sequence[float], metric: Sequence[float]
) -> tuple[float, float]:
  """Returns Spearman's rank correlation and its two-sided p-value.

  Of up to eight points p is the share of all their orders that correlate as
  much; of more it comes from the t distribution. Both are NaN under three
  points or where one side does not vary.
  """
  if len(measure) < 3 or np.ptp(measure) == 0 or np.ptp(metric) == 0:
    return float("nan"), float("nan")
  found = scipy.stats.spearmanr(measure, metric)
  p = float(found.pvalue)
  if len(measure) <= _EXACT_POINTS:
    first, second = (scipy.stats.rankdata(v) for v in (measure, metric))
    first -= first.mean()
    products = np.array(list(itertools.permutations(second))) @ first
    p = float(np.mean(np.abs(products) >= np.abs(first @ second) - 1e-9))
  return float(found.statistic), p
