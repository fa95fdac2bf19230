"""Recall, NDCG and MRR on items, for `seqio.Evaluator`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gr_jax.core import checks
from gr_jax.sids import sid_catalog
from gr_jax.sids import vocabulary as vocabulary_lib


@dataclasses.dataclass(frozen=True)
class ItemMetrics:
  """What a task needs to be evaluated on items by seqio.

  `postprocess_fn` and `metric_fns` go to `next_item.register`. The model
  function given to `Evaluator.evaluate` as `predict_fn` returns, for every
  example, the tokens [W, T] of its beams.

  An ID held by g items counts as each of them with probability 1 / g: the
  figures are exact expectations over drawing one of its items at random. A
  beam that names no item keeps its rank and hits nothing.

  Attributes:
    catalog: The items' IDs.
    vocabulary: Their token layout.
    cutoffs: The k of recall and NDCG.
    best_last: Whether beams come worst first, as T5X returns them.
  """

  catalog: sid_catalog.SidCatalog
  vocabulary: vocabulary_lib.SidVocabulary
  cutoffs: tuple[int, ...] = (5, 10)
  best_last: bool = False

  def __post_init__(self):
    """Refuses cutoffs that rank nothing."""
    if not self.cutoffs or min(self.cutoffs) < 1:
      raise checks.InputError(
        f"cutoffs must name ranks of at least 1; got {self.cutoffs}."
      )

  def arguments(self) -> dict[str, Any]:
    """Returns the keyword arguments of `next_item.register`."""
    postprocess, metric = self._functions()
    return {"postprocess_fn": postprocess, "metric_fns": [metric]}

  def _functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
    tokens = np.asarray(self.vocabulary.tokens_from_codes(self.catalog.codes))
    text_of_item = [
      self.vocabulary.readable(row[row != vocabulary_lib.PAD_ID])
      for row in tokens
    ]
    num_items: dict[str, int] = {}
    for text in text_of_item:
      num_items[text] = num_items.get(text, 0) + 1

    def postprocess(
      decoded: Any, *, example: Mapping[str, Any], is_target: bool
    ) -> Any:
      """Returns the target's ID, or the beams' IDs best first."""
      if is_target:
        return text_of_item[int(example["target_item"])]
      beams = [decoded] if isinstance(decoded, str) else list(decoded)
      return beams[::-1] if self.best_last else beams

    def item_metrics(
      targets: Sequence[str], predictions: Sequence[Sequence[str]]
    ) -> dict[str, float]:
      return ranking_metrics(targets, predictions, num_items, self.cutoffs)

    return postprocess, item_metrics


def ranking_metrics(
  targets: Sequence[str],
  predictions: Sequence[Sequence[str]],
  num_items: Mapping[str, int],
  cutoffs: Sequence[int],
) -> dict[str, float]:
  """Averages ranking metrics over examples.

  Args:
    targets: The ID of each example's next item.
    predictions: Its ranked IDs, best first, without repetition.
    num_items: Items that hold each ID of the catalog.
    cutoffs: The k of recall and NDCG.

  Returns:
    "recall@k", "ndcg@k" (one relevant item: 1 / log2(rank + 2), rank from
    0), "mrr" over all that was returned, and "invalid_rate".

  Raises:
    InputError: No example, or fewer predictions than the largest cutoff.
  """
  if not targets:
    raise checks.InputError("No example to evaluate; the split is empty.")
  fewest = min(len(ranked) for ranked in predictions)
  if fewest < max(cutoffs):
    raise checks.InputError(
      f"Recall at {max(cutoffs)} needs that many beams; got {fewest}. Raise "
      "the beam width."
    )
  weight = np.zeros(len(targets))  # of the target's rank: 1 / its ID's items
  rank = np.full(len(targets), np.inf)
  num_invalid = num_returned = 0
  for row, (target, ranked) in enumerate(
    zip(targets, predictions, strict=True)
  ):
    num_returned += len(ranked)
    num_invalid += sum(sid not in num_items for sid in ranked)
    if target in ranked:
      weight[row] = 1.0 / num_items[target]
      rank[row] = list(ranked).index(target)
  figures = {}
  for k in cutoffs:
    hit = np.where(rank < k, weight, 0.0)
    figures[f"recall@{k}"] = float(hit.mean())
    figures[f"ndcg@{k}"] = float((hit / np.log2(rank + 2.0)).mean())
  figures["mrr"] = float((weight / (rank + 1.0)).mean())
  figures["invalid_rate"] = num_invalid / num_returned
  return figures
