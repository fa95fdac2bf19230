"""The rerankers of a trained generator: fitted on validation lists, kept."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from gr_jax.data import splits
from gr_jax.embeddings.co_occurrence import text_vectors
from gr_jax.evaluation import baselines, evaluator, report, reranking
from gr_jax.evaluation.scorers import Histories
from gr_jax.stages import generator as generator_stage
from gr_jax.stages import live_catalog, prediction, prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir

KIND = "reranker"


@dataclasses.dataclass(frozen=True, eq=False)
class Reranker:
  """What `gr_jax.evaluation.reranking` needs, of every replica.

  Attributes:
    evidence: Of all items, appended ones too.
    own: Weights for the lists of each of N networks: the replicas and, with
      `decoding.ensemble`, all of them as one.
    alone: Weights for the fusion's lists.
    joint: Weights for the lists of each network and the fusion's, joined.
    chosen: Which network recommends: the ensemble, or the replica that is
      best on validation.
  """

  evidence: reranking.Evidence
  own: Float[np.ndarray, "N F"]
  alone: Float[np.ndarray, "F"]
  joint: Float[np.ndarray, "N F"]
  chosen: int

  def rerank(
    self,
    histories: Histories,
    items: Int[np.ndarray, "U W"],
    log_likelihoods: Float[np.ndarray, "U W"],
  ) -> tuple[Int[np.ndarray, "U W"], Float[np.ndarray, "U W"]]:
    """Puts the chosen network's lists in their new order.

    Args:
      histories: Of the users.
      items: Their lists, -1 for no item.
      log_likelihoods: The generator's.

    Returns:
      As `reranking.rerank`.
    """
    features = self.evidence.features(histories, items, log_likelihoods)
    return reranking.rerank(features, items, self.own[self.chosen])


def load(
  config: RunConfig,
  workdir: Workdir,
  stored: prepare.StoredDataset,
  live: live_catalog.LiveCatalog,
) -> Reranker:
  """Reads the reranker, or fits it on the trained catalog and stores it.

  Raises:
    InputError: No trained generator yet, one of another catalog, or one
      whose lists hold no validation item.
  """
  embeddings, table = prepare.load_embeddings(workdir, stored)
  parents = {"dataset": stored.artifact, "sids": live.sids_artifact}
  saved = workdir.load_child("generator", parents)
  split = splits.leave_one_out(stored.interactions)
  everything = table
  if live.new_vectors is not None:
    everything = dataclasses.replace(
      table,
      item_ids=live.items.item_ids,
      vectors=np.concatenate([table.vectors, live.new_vectors]),
    )
  evidence = reranking.Evidence.fit(
    stored.interactions, split, text_vectors(config.embedding, everything)
  )
  parents = {"generator": saved, "embeddings": embeddings}
  section = {
    "features": list(reranking.FEATURES),
    "decoding": config.sections["decoding"],
    "validation": config.sections["validation"],
    "seed": config.seed,
  }
  kept = workdir.matching(KIND, section, parents)
  if kept is None:
    counters = baselines.Fusion().fit(
      stored.interactions,
      split,
      num_items=table.num_items,
      vectors=text_vectors(config.embedding, table),
    )
    weights = _fit(config, workdir, saved, stored, split, evidence, counters)
    kept = workdir.save(KIND, section, weights, parents)
  chosen = int(saved.metadata.get("best_replica", 0))
  if config.decoding.ensemble:
    chosen = generator_stage.num_replicas(saved)
  return Reranker(evidence, **kept.arrays, chosen=chosen)


def _fit(config, workdir, saved, stored, split, evidence, counters):
  """Returns the weights as arrays of the artifact."""
  examples = generator_stage.validation_examples(config, split)
  histories = Histories.create(stored.interactions, examples)
  targets = evaluator.targets(stored.interactions, examples)
  width = config.decoding.beam_width  # of every generator's list
  listing = baselines.TopLists(counters, examples.num_examples, width)
  baselines.visit(counters, histories, [listing], description="listing")
  counted = listing.nothing_removed
  counted_features = evidence.features(
    histories, counted, np.zeros(counted.shape)
  )

  def fit(features, items):
    # Joined lists are two: places of the second begin after `width`.
    first = np.arange(items.shape[1]) % width < reranking.FITTED_PLACES
    return reranking.fit_weights(features[:, first], items[:, first], targets)

  # The catalog as it was trained: nothing appended since has been chosen yet.
  _, catalog = semantic_ids.load_sids(workdir)
  trie = generator_stage.make_generator(config, catalog).trie
  everything = {report.NOTHING_REMOVED: None}
  own, joint = [], []
  decoded = prediction.decode(
    config, saved, catalog, trie, stored.interactions, examples, everything
  )
  for network, lists in enumerate(prediction.with_ensemble(config, decoded)):
    found = lists[report.NOTHING_REMOVED]
    items = prediction.drawn_items(
      catalog, found.item_index, seed=config.seed + network
    )
    features = evidence.features(histories, items, found.scores)
    own.append(fit(features, items))
    both, features = reranking.joined(
      items, features, counted, counted_features
    )
    joint.append(fit(features, both))
  return {
    "own": np.stack(own),
    "alone": fit(counted_features, counted),
    "joint": np.stack(joint),
  }
