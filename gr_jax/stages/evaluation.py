"""Stage 10: the trained generator beside the baselines, on the test items."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

from gr_jax.core import artifact
from gr_jax.data import splits
from gr_jax.evaluation import baselines, evaluator, metrics
from gr_jax.evaluation.evaluator import Predictions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import generator as generator_stage
from gr_jax.stages import prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tasks import windows

FORMS = ("nothing_removed", "history_removed")
GENERATOR = "generator"


def predict_test(
  config: RunConfig,
  workdir: Workdir,
  stored: prepare.StoredDataset,
  sids: artifact.Artifact,
  catalog: SidCatalog,
  examples: splits.Examples,
) -> Predictions:
  """Decodes the test users, unless done before, and stores the lists.

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  saved = workdir.load_child(
    "generator", {"dataset": stored.artifact, "sids": sids}
  )
  section = config.sections["decoding"]
  parents = {"generator": saved}
  kept = workdir.matching("predictions", section, parents)
  if kept is not None:
    return Predictions(**kept.arrays)
  generator = generator_stage.make_generator(config, catalog)
  predictions = evaluator.predict(
    evaluator.make_recommend_fn(
      generator.model,
      generator.vocabulary,
      generator.trie,
      beam_width=config.decoding.beam_width,
      constrained=config.decoding.constrained,
    ),
    generator_stage.load_params(saved),
    windows.training_data(
      stored.interactions, catalog, generator.vocabulary, examples
    ),
    generator.layout,
    batch_size=config.evaluation.batch_size,
    mesh=generator_stage.make_mesh(config),
  )
  workdir.save("predictions", section, vars(predictions), parents)
  return predictions


def generator_metrics(
  predictions: Predictions,
  catalog: SidCatalog,
  targets: Int[np.ndarray, "U"],
  populations: Mapping[str, Bool[np.ndarray, "U"]],
) -> dict[str, dict[str, float]]:
  """Returns item-level and SID-level metrics of each population."""
  width = predictions.item_index.shape[1]
  semantic = catalog.num_semantic_levels
  item_ranks = metrics.target_ranks(predictions.item_index, targets)
  sid_ranks = metrics.sid_ranks(
    predictions.codes[..., :semantic],
    predictions.returned,
    catalog.codes[targets, :semantic],
  )
  invalid = metrics.invalid_rate(predictions.item_index, predictions.returned)
  results = {}
  for name, mask in populations.items():
    on_sids = metrics.summarize(sid_ranks, list_size=width, user_mask=mask)
    results[name] = {
      **metrics.summarize(item_ranks, list_size=width, user_mask=mask),
      **{metrics.SID_LEVEL + key: value for key, value in on_sids.items()},
      metrics.INVALID_RATE: invalid,
    }
  return results


def measure(config: RunConfig, workdir: Workdir) -> dict:
  """Returns the metrics of the generator and of every baseline.

  Nested as row -> form -> population -> metric -> value. The forms are
  "nothing_removed" from the ranking, the published protocol, and
  "history_removed"; populations are "all" and, where interactions have
  times, "later_day" and "same_day".

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  stored = prepare.load_data(workdir)
  _, table = prepare.load_embeddings(workdir, stored)
  sids, catalog = semantic_ids.load_sids(workdir)
  split = splits.leave_one_out(stored.interactions)
  examples = split.test
  populations = {"all": np.ones(examples.num_examples, bool)}
  later = splits.later_day(stored.interactions, examples)
  if later is not None:
    populations |= {"later_day": later, "same_day": ~later}
  targets = evaluator.targets(stored.interactions, examples)
  histories = evaluator.histories(stored.interactions, examples)
  predictions = predict_test(
    config, workdir, stored, sids, catalog, examples
  )
  rows = {
    GENERATOR: {
      form: generator_metrics(lists, catalog, targets, populations)
      for form, lists in zip(
        FORMS, (predictions, predictions.without(histories)), strict=True
      )
    }
  }
  width = config.decoding.beam_width
  ranked = baselines.evaluate_all(
    stored.interactions,
    split,
    examples,
    num_items=catalog.num_items,
    vectors=table.vectors,
  )
  for name, ranks in ranked.items():
    rows[name] = {
      form: {
        population: metrics.summarize(
          getattr(ranks, form), list_size=width, user_mask=mask
        )
        for population, mask in populations.items()
      }
      for form in FORMS
    }
  return rows


def evaluate(config: RunConfig, workdir: Workdir) -> None:
  """Ranks every test item, stores and prints the table of metrics.

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  rows = measure(config, workdir)
  import json, sys
  (workdir.root / "report.json").write_text(json.dumps(rows, indent=1))
  for name, row in rows.items():
    sys.stdout.write(f"{name} " + " ".join(
      f"{form} R@10 {row[form]['all']['recall@10']:.4f} N@10 {row[form]['all']['ndcg@10']:.4f}" for form in FORMS) + "\n")
