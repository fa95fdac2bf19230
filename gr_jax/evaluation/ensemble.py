"""The lists of several networks as one: the mean of their probabilities."""

from collections.abc import Sequence

import numpy as np

from gr_jax.evaluation.evaluator import Predictions


def join(predictions: Sequence[Predictions]) -> Predictions:
  """Returns each user's best items by the mean probability of R networks.

  As in an ensemble of classifiers (Hansen and Salamon 1990), but over lists:
  an item that a network's search did not find counts as impossible by it.

  Args:
    predictions: R networks' lists of the same users, of width W each; within
      a list no item stands twice.

  Returns:
    Lists of width W; entries that are no items are left out. Of equal scores
    the lower item index comes first.
  """
  width = predictions[0].item_index.shape[1]
  item = np.concatenate([p.item_index for p in predictions], axis=1)  # [U, RW]
  score = np.concatenate([p.scores for p in predictions], axis=1)
  score = np.where(item >= 0, score, -np.inf)
  by_item = np.argsort(item, axis=1, kind="stable")
  item = np.take_along_axis(item, by_item, axis=1)
  score = np.take_along_axis(score, by_item, axis=1)
  # An item's R entries at most now stand side by side; the first takes all.
  total = score.copy()
  for r in range(1, len(predictions)):
    same = item[:, r:] == item[:, :-r]
    others = np.where(same, score[:, r:], -np.inf)
    total[:, :-r] = np.logaddexp(total[:, :-r], others)
  total[:, 1:][item[:, 1:] == item[:, :-1]] = -np.inf
  total -= np.float32(np.log(len(predictions)))
  best = np.argsort(-total, axis=1, kind="stable")[:, :width]  # [U, W]
  total = np.take_along_axis(total, best, axis=1)
  listed = np.isfinite(total)
  item = np.where(listed, np.take_along_axis(item, best, axis=1), -1)
  codes = np.concatenate([p.codes for p in predictions], axis=1)
  place = np.take_along_axis(by_item, best, axis=1)
  codes = np.take_along_axis(codes, place[..., None], axis=1)
  return Predictions(
    item_index=item.astype(np.int32),
    codes=np.where(listed[..., None], codes, -1),
    scores=total.astype(np.float32),
  )
