"""A trained generator's lists of the test users, kept, and of any others."""

import time
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Bool, Int32

from gr_jax.core import artifact, rng
from gr_jax.data import Interactions, splits
from gr_jax.decoding.trie import Trie
from gr_jax.evaluation import ensemble, evaluator, report, shared_ids
from gr_jax.evaluation.evaluator import Predictions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import generator as generator_stage
from gr_jax.stages import live_catalog, prepare, tries
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tasks import windows


def predict_test(
  config: RunConfig,
  workdir: Workdir,
  stored: prepare.StoredDataset,
  live: live_catalog.LiveCatalog,
  examples: splits.Examples,
) -> list[dict[str, Predictions]]:
  """Decodes the test users, unless done before, and stores the lists.

  Returns:
    For each replica, the lists of each of the report's forms.

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  saved = workdir.load_child(
    "generator", {"dataset": stored.artifact, "sids": live.sids_artifact}
  )
  section = dict(config.sections["decoding"])
  for name in ("rerank", "ensemble"):  # what is listed does not depend on it
    section.pop(name, None)
  parents = {"generator": saved, **live.parents}
  kept = workdir.matching("predictions", section, parents)
  if kept is not None:
    return [
      {
        form: Predictions(
          **artifact.group(kept.arrays, f"replica_{replica}/{form}")
        )
        for form in report.FORMS
      }
      for replica in range(generator_stage.num_replicas(saved))
    ]
  denied = denied_items(stored.interactions, examples)
  predictions, seconds = [], []
  started = time.monotonic()
  for lists in decode(
    config,
    saved,
    live.sids,
    tries.load(workdir, live),
    stored.interactions,
    examples,
    denied,
  ):
    predictions.append(lists)
    seconds.append(time.monotonic() - started)
    started = time.monotonic()
  arrays = {}
  for replica, lists in enumerate(predictions):
    for form, each in lists.items():
      arrays |= artifact.prefixed(vars(each), f"replica_{replica}/{form}")
  # The first replica compiles: with several it is not the fastest.
  facts = {
    "users_per_second": len(denied) * examples.num_examples / min(seconds)
  }
  workdir.save("predictions", section, arrays, parents, facts)
  return predictions


def decode(
  config: RunConfig,
  saved: artifact.Artifact,
  catalog: SidCatalog,
  trie: Trie,
  interactions: Interactions,
  examples: splits.Examples,
  denied: Mapping[str, Int32[np.ndarray, "U R"] | None],
) -> Iterator[dict[str, Predictions]]:
  """Decodes every example, by every replica, for each set of denied items.

  Args:
    config: The run's settings.
    saved: The generator.
    catalog: The semantic IDs.
    trie: Of the items that may be returned.
    interactions: The data, in item indices of `catalog`.
    examples: Of that data.
    denied: By name, items that each user must not get, -1 filling the rows.

  Yields:
    For each replica, the lists by the same names.
  """
  generator = generator_stage.make_generator(config, catalog)
  mesh = generator_stage.make_mesh(config)
  recommend = evaluator.make_recommend_fn(
    generator.model,
    generator.vocabulary,
    trie,
    beam_width=config.decoding.widths(),
    constrained=config.decoding.constrained,
    mesh=mesh,
  )
  data = windows.training_data(
    interactions, catalog, generator.vocabulary, examples
  )

  def predict(params):
    return {
      name: evaluator.predict(
        recommend,
        params,
        data,
        generator.layout,
        batch_size=config.evaluation.batch_size,
        mesh=mesh,
        denied_items=items,
        description=f"decoding, {name.replace('_', ' ')}",
      )
      for name, items in denied.items()
    }

  for replica in range(generator_stage.num_replicas(saved)):
    yield predict(generator_stage.load_params(saved, replica))


def with_ensemble(
  config: RunConfig, predictions: Iterable[Mapping[str, Predictions]]
) -> list[Mapping[str, Predictions]]:
  """Returns the replicas' lists and, with `decoding.ensemble`, theirs as one.

  Args:
    config: The run's settings.
    predictions: For each replica, lists by name.
  """
  predictions = list(predictions)
  if config.decoding.ensemble:
    predictions.append(
      {
        name: ensemble.join([lists[name] for lists in predictions])
        for name in predictions[0]
      }
    )
  return predictions


def denied_items(
  interactions: Interactions, examples: splits.Examples
) -> dict[str, Int32[np.ndarray, "U R"] | None]:
  """Returns the items that each of the report's forms leaves out."""
  return {
    report.NOTHING_REMOVED: None,
    report.HISTORY_REMOVED: evaluator.histories(interactions, examples),
  }


def drawn_items(
  catalog: SidCatalog,
  item_index: Int32[np.ndarray, "U W"],
  denied: Int32[np.ndarray, "U R"] | None = None,
  *,
  recommendable: Bool[np.ndarray, "N"] | None = None,
  seed: int,
) -> Int32[np.ndarray, "U W"]:
  """Returns one item of every returned ID, -1 where it has none to give.

  Args:
    catalog: The semantic IDs.
    item_index: The lists; of a shared ID one of its items.
    denied: Items that each user must not get, -1 filling the rows.
    recommendable: Items that an ID may yield; all by default.
    seed: Of the draw, where items share IDs.
  """
  if not catalog.shares_ids:
    return item_index
  draw = rng.numpy_generator(jax.random.key(seed), "random_item")
  buckets = shared_ids.Buckets.create(catalog, recommendable)
  return buckets.sample(item_index, draw, denied)
