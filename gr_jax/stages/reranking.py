"""A trained generator's reranker: fitted on validation lists, and kept."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from gr_jax.data import splits
from gr_jax.embeddings.co_occurrence import text_vectors
from gr_jax.evaluation import evaluator, report, reranking
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
    weights: Of each replica's features.
    best_replica: Which replica is best on validation.
  """

  evidence: reranking.Evidence
  weights: Float[np.ndarray, "R F"]
  best_replica: int

  def rerank(
    self,
    histories: Histories,
    items: Int[np.ndarray, "U W"],
    log_likelihoods: Float[np.ndarray, "U W"],
    *,
    replica: int | None = None,
  ) -> tuple[Int[np.ndarray, "U W"], Float[np.ndarray, "U W"]]:
    """Puts lists in their new order.

    Args:
      histories: Of the users.
      items: Their lists, -1 for no item.
      log_likelihoods: The generator's.
      replica: Whose lists they are; None for the best one's.

    Returns:
      As `reranking.rerank`.
    """
    replica = self.best_replica if replica is None else replica
    features = self.evidence.features(histories, items, log_likelihoods)
    return reranking.rerank(features, items, self.weights[replica])


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
  vectors = table.vectors
  if live.new_vectors is not None:
    vectors = np.concatenate([vectors, live.new_vectors])
  evidence = reranking.Evidence.fit(
    stored.interactions,
    split,
    text_vectors(config.embedding, dataclasses.replace(table, vectors=vectors)),
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
    weights = _fit(config, workdir, saved, stored, split, evidence)
    kept = workdir.save(KIND, section, {"weights": weights}, parents)
  best = int(saved.metadata.get("best_replica", 0))
  return Reranker(evidence, kept.arrays["weights"], best)


def _fit(config, workdir, saved, stored, split, evidence):
  """Returns each replica's weights [R, F]."""
  examples = generator_stage.validation_examples(config, split)
  histories = Histories.create(stored.interactions, examples)
  targets = evaluator.targets(stored.interactions, examples)
  weights = []
  # The catalog as it was trained: nothing appended since has been chosen yet.
  _, catalog = semantic_ids.load_sids(workdir)
  trie = generator_stage.make_generator(config, catalog).trie
  everything = {report.NOTHING_REMOVED: None}
  for replica, lists in enumerate(
    prediction.decode(
      config, saved, catalog, trie, stored.interactions, examples, everything
    )
  ):
    found = lists[report.NOTHING_REMOVED]
    items = prediction.drawn_items(
      catalog, found.item_index, seed=config.seed + replica
    )
    features = evidence.features(histories, items, found.scores)
    weights.append(reranking.fit_weights(features, items, targets))
  return np.stack(weights)
