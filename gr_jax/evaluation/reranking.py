"""Reorders a generator's lists by what counts and texts say of their items.

A log-linear model over the items of a list: p(item) is proportional to
exp(w . f(history, item)), the generator's log-likelihood one feature of six.
The weights are those of largest likelihood on the lists of validation users
(a conditional logit, McFadden 1974). Lists are the generator's own; or those
of the counters' rank fusion, whose items say how far counts and texts come
without any network; or both together.
"""

import concurrent.futures
import dataclasses
import os

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float, Float32, Int

from gr_jax.core.checks import InputError
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Split
from gr_jax.evaluation import baselines
from gr_jax.evaluation.scorers import Histories, Scorer

FEATURES = (
  "log_likelihood",  # the generator's
  "transitions",  # log(1 + times it followed the newest item in training)
  "item_knn",  # square root of item-kNN's score
  "text",  # cosine of its text to that of the newest item
  "transitions_before",  # the same of the item before the newest
  "text_before",
)
# Weights are fitted on the first places of lists: likelihood counts a target
# at place 300 like one at place 3, while the first ten are what is looked at.
FITTED_PLACES = 50
_CHUNK_ELEMENTS = 1 << 22  # entries of text vectors that a thread holds
_RIDGE = 1e-3  # on weights of features of unit variance


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """What is known of items besides the generator.

  Attributes:
    transitions: Counts of the item that followed.
    item_knn: Who chose both.
    text: Cosines of texts.
    width: D, of the texts' vectors.
  """

  transitions: Scorer
  item_knn: Scorer
  text: Scorer
  width: int

  @classmethod
  def fit(
    cls,
    interactions: Interactions,
    split: Split,
    vectors: Float32[np.ndarray, "N D"],
  ) -> "Evidence":
    """Counts the training part of the split.

    Args:
      interactions: The data.
      split: Its split; neither validation nor test items are counted.
      vectors: Of all items' texts.

    Raises:
      InputError: Vectors that are not finite, or zero.
    """
    fitted = [
      baseline.fit(
        interactions, split, num_items=vectors.shape[0], vectors=vectors
      )
      for baseline in (
        baselines.Markov(),
        baselines.ItemKnn(),
        baselines.TextNeighbors(),
      )
    ]
    return cls(*fitted, width=vectors.shape[1])

  def features(
    self,
    histories: Histories,
    items: Int[np.ndarray, "U W"],
    log_likelihoods: Float[np.ndarray, "U W"],
  ) -> Float[np.ndarray, "U W F"]:
    """Returns the features of every listed item, float64.

    Args:
      histories: Of U users.
      items: Each one's list, -1 for no item.
      log_likelihoods: The generator's.

    Returns:
      In the order of `FEATURES`; 0 where there is no item.
    """
    num_users, length = items.shape
    result = np.zeros((num_users, length, len(FEATURES)))
    size = max(1, _CHUNK_ELEMENTS // (length * self.width))

    def work(start: int) -> None:
      rows = np.arange(start, min(start + size, num_users))
      result[rows] = self._features(
        histories.take(rows), np.maximum(items[rows], 0)
      )

    num_threads = min(8, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
      list(pool.map(work, range(0, num_users, size)))  # raises what failed
    result[..., 0] = log_likelihoods
    return np.where((items >= 0)[..., None], result, 0.0)

  def _features(self, histories, items):
    result = np.zeros((*items.shape, len(FEATURES)))
    result[..., 1] = np.log1p(self.transitions.score_items(histories, items))
    result[..., 2] = np.sqrt(self.item_knn.score_items(histories, items))
    result[..., 3] = self.text.score_items(histories, items)
    rows, before = histories.earlier()
    result[rows, :, 4] = np.log1p(
      self.transitions.score_items(before, items[rows])
    )
    result[rows, :, 5] = self.text.score_items(before, items[rows])
    # -inf is the item of the history itself: no reason to have it once more.
    return np.maximum(result, 0.0)


def joined(
  items: Int[np.ndarray, "U W"],
  features: Float[np.ndarray, "U W F"],
  others: Int[np.ndarray, "U C"],
  other_features: Float[np.ndarray, "U C F"],
) -> tuple[Int[np.ndarray, "U n"], Float[np.ndarray, "U n F"]]:
  """Appends other items to lists, unless they stand in them.

  The generator thinks less of them than of what it returned: they get the
  lowest log-likelihood of the list, as their exact ones measured worse
  (docs/experiments.md).

  Args:
    items: The generator's lists, -1 for no item.
    features: Theirs.
    others: Other items of the same users, -1 for none.
    other_features: Theirs, but for the log-likelihood.

  Returns:
    Lists of W + C places, -1 for no item, and their features.
  """
  known = np.zeros(others.shape, bool)
  for column in items.T:
    known |= others == column[:, None]
  kept = np.where(known, np.int32(-1), others)
  kept_features = np.where((kept >= 0)[..., None], other_features, 0.0)
  kept_features[..., 0] = np.min(features[..., 0], axis=1, initial=0.0)[:, None]
  return (
    np.concatenate([items, kept], axis=1),
    np.concatenate([features, kept_features], axis=1),
  )


def fit_weights(
  features: Float[np.ndarray, "U W F"],
  items: Int[np.ndarray, "U W"],
  targets: Int[np.ndarray, "U"],
) -> Float[np.ndarray, "F"]:
  """Returns the weights under which the targets are likeliest.

  Users whose list lacks the target say nothing.

  Args:
    features: From `Evidence.features`.
    items: The lists, -1 for no item.
    targets: The items that came next.

  Raises:
    InputError: No list holds its target.
  """
  is_target = items == targets[:, None]
  told = is_target.any(axis=1)
  if not told.any():
    raise InputError(
      f"None of {targets.size} validation lists holds its target, so there is "
      "nothing to fit a reranker on; train longer, or set decoding.rerank to "
      "False."
    )
  x, listed = features[told], items[told] >= 0
  place = is_target[told].argmax(axis=1)
  spread = x[listed].std(axis=0)
  scale = np.where(spread > 0.0, 1.0 / np.maximum(spread, 1e-12), 0.0)
  x = x * scale
  own = np.arange(place.size), place

  def loss(weights):
    log_chance = _log_softmax(x @ weights, listed)
    mean = np.einsum("uw,uwf->uf", np.exp(log_chance), x)
    value = -log_chance[own].mean() + _RIDGE * weights @ weights
    return value, (mean - x[own]).mean(axis=0) + 2.0 * _RIDGE * weights

  found = scipy.optimize.minimize(
    loss, np.zeros(len(FEATURES)), jac=True, method="L-BFGS-B"
  )
  return found.x * scale


def rerank(
  features: Float[np.ndarray, "U W F"],
  items: Int[np.ndarray, "U W"],
  weights: Float[np.ndarray, "F"],
) -> tuple[Int[np.ndarray, "U W"], Float[np.ndarray, "U W"]]:
  """Returns each list in its new order, and log-probabilities in the list.

  Entries without an item come last, at -inf; among equals the generator's
  order stands.
  """
  scores = _log_softmax(features @ weights, items >= 0)
  order = np.argsort(-scores, axis=1, kind="stable")
  return (
    np.take_along_axis(items, order, axis=1),
    np.take_along_axis(scores, order, axis=1),
  )


def _log_softmax(
  scores: Float[np.ndarray, "U W"], listed: Bool[np.ndarray, "U W"]
) -> Float[np.ndarray, "U W"]:
  """Normalizes over the listed items; -inf elsewhere."""
  scores = np.where(listed, scores, -np.inf)
  top = np.max(scores, axis=1, keepdims=True, initial=-1e300)
  total = np.sum(np.exp(scores - top), axis=1, keepdims=True)
  return scores - top - np.log(np.maximum(total, 1e-300))
