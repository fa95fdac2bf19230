"""Stage 10: the trained generator beside the baselines, on the test items."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import rich.console
from jaxtyping import Bool, Float32, Int, Int32

from gr_jax.core import artifact, processes, rng
from gr_jax.data import Interactions, splits
from gr_jax.decoding.trie import Trie
from gr_jax.embeddings.co_occurrence import text_vectors
from gr_jax.evaluation import (
  baselines,
  evaluator,
  metrics,
  report,
  shared_ids,
)
from gr_jax.evaluation.evaluator import Predictions
from gr_jax.evaluation.scorers import Histories
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
  section = config.sections["decoding"]
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


def denied_items(
  interactions: Interactions, examples: splits.Examples
) -> dict[str, Int32[np.ndarray, "U R"] | None]:
  """Returns the items that each of the report's forms leaves out."""
  return {
    report.NOTHING_REMOVED: None,
    report.HISTORY_REMOVED: evaluator.histories(interactions, examples),
  }


def generator_metrics(
  predictions: Predictions,
  catalog: SidCatalog,
  targets: Int[np.ndarray, "U"],
  populations: Mapping[str, Bool[np.ndarray, "U"]],
  *,
  removed: Int32[np.ndarray, "U R"] | None = None,
  recommendable: Bool[np.ndarray, "N"] | None = None,
  seed: int = 0,
) -> dict[str, dict[str, float]]:
  """Returns item-level and SID-level metrics of each population.

  Where items share IDs, the item-level metrics are expectations over the
  item that an ID yields, and those of one draw stand beside them.

  Args:
    predictions: The lists.
    catalog: The semantic IDs.
    targets: The items that came next.
    populations: Which users to average over, by name.
    removed: Items left out of each user's list, -1 filling the rows.
    recommendable: Items that an ID may yield; all by default.
    seed: Of the draw.
  """
  width = predictions.item_index.shape[1]
  buckets = shared_ids.Buckets.create(catalog, recommendable)
  expected = buckets.expected_ranks(predictions.item_index, targets, removed)
  drawn = None
  if catalog.shares_ids:
    generator = rng.numpy_generator(jax.random.key(seed), "random_item")
    drawn = metrics.target_ranks(
      buckets.sample(predictions.item_index, generator, removed), targets
    )
  sid_ranks = metrics.sid_ranks(
    catalog.semantic_codes(predictions.codes),
    predictions.returned,
    catalog.semantic_codes(catalog.codes[targets]),
  )
  invalid = metrics.invalid_rate(predictions.item_index, predictions.returned)
  results = {}
  for name, mask in populations.items():
    on_sids = metrics.summarize(sid_ranks, list_size=width, user_mask=mask)
    ranks, chances = expected.ranks[mask], expected.chances[mask]
    values = metrics.per_user(ranks, list_size=width, chances=chances)
    results[name] = {
      **metrics.summarize(ranks, list_size=width, chances=chances),
      **{
        report.INTERVAL + key: metrics.user_interval(values[key]).half_width
        for key in report.DECIDING
      },
      **{metrics.SID_LEVEL + key: value for key, value in on_sids.items()},
      metrics.INVALID_RATE: invalid,
    }
    if drawn is not None:
      once = metrics.summarize(drawn, list_size=width, user_mask=mask)
      results[name] |= {shared_ids.SAMPLED + k: v for k, v in once.items()}
  return results


def fused_metrics(
  config: RunConfig,
  stored: prepare.StoredDataset,
  live: live_catalog.LiveCatalog,
  text: Float32[np.ndarray, "N D"],
  split: splits.Split,
  predictions: Sequence[Mapping[str, Predictions]],
  populations: Mapping[str, Bool[np.ndarray, "U"]],
) -> list[dict[str, dict[str, dict[str, float]]]]:
  """Returns the metrics of each replica's lists fused with the counters.

  Of items that share an ID one is drawn.

  Args:
    config: The run's settings.
    stored: The data set.
    live: The semantic IDs.
    text: Vectors of the items' texts.
    split: Whose test examples were decoded.
    predictions: For each replica, the lists of each of the report's forms.
    populations: Which users to average over, by name.
  """
  denied = denied_items(stored.interactions, split.test)
  buckets = shared_ids.Buckets.create(live.sids, live.recommendable)
  lists = []
  for replica, forms in enumerate(predictions):
    draw = rng.numpy_generator(
      jax.random.key(config.seed + replica), "fused_random_item"
    )
    lists.append(
      tuple(
        buckets.sample(forms[form].item_index, draw, denied[form])
        if live.sids.shares_ids
        else forms[form].item_index
        for form in report.FORMS
      )
    )
  scorer = baselines.Fusion().fit(
    stored.interactions,
    split,
    num_items=stored.catalog.num_items,
    vectors=text,
  )
  ranked = baselines.fused_ranks(
    Histories.create(stored.interactions, split.test),
    evaluator.targets(stored.interactions, split.test),
    lists,
    scorer,
  )
  width = config.decoding.beam_width
  rows = []
  for ranks in ranked:
    row = {}
    for form in report.FORMS:
      values = metrics.per_user(getattr(ranks, form), list_size=width)
      row[form] = {
        name: {key: float(value[mask].mean()) for key, value in values.items()}
        | {
          report.INTERVAL + key: metrics.user_interval(
            values[key][mask]
          ).half_width
          for key in report.DECIDING
        }
        for name, mask in populations.items()
      }
    rows.append(row)
  return rows


def baseline_ranks(
  workdir: Workdir,
  stored: prepare.StoredDataset,
  embeddings: artifact.Artifact,
  text: Float32[np.ndarray, "N D"],
  split: splits.Split,
) -> dict[str, baselines.TargetRanks]:
  """Ranks the test items by every baseline, unless done before."""
  parents = {"dataset": stored.artifact, "embeddings": embeddings}
  section = {"names": list(baselines.BASELINES)}
  kept = workdir.matching("baselines", section, parents)
  if kept is not None:
    return {
      name: baselines.TargetRanks(**artifact.group(kept.arrays, name))
      for name in baselines.BASELINES
    }
  ranked = baselines.evaluate_all(
    stored.interactions,
    split,
    split.test,
    num_items=stored.catalog.num_items,
    vectors=text,
  )
  arrays = {}
  for name, ranks in ranked.items():
    arrays |= artifact.prefixed(vars(ranks), name)
  workdir.save("baselines", section, arrays, parents)
  return ranked


def measure(
  config: RunConfig, workdir: Workdir, *, fused: bool = True
) -> report.Rows:
  """Returns the metrics of the generator and of every baseline.

  `gr_jax.evaluation.report` says how they are nested.

  Args:
    config: The run's settings.
    workdir: Where it lies.
    fused: Whether the generator's lists fused with the counters are a row.

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  stored = prepare.load_data(workdir)
  embeddings, table = prepare.load_embeddings(workdir, stored)
  live = live_catalog.load(workdir, stored)
  split = splits.leave_one_out(stored.interactions)
  examples = split.test
  populations = {report.ALL: np.ones(examples.num_examples, bool)}
  later = splits.later_day(stored.interactions, examples)
  if later is not None:
    populations |= {report.LATER_DAY: later, report.SAME_DAY: ~later}
  targets = evaluator.targets(stored.interactions, examples)
  predictions = predict_test(config, workdir, stored, live, examples)
  denied = denied_items(stored.interactions, examples)
  replicas = [
    {
      form: generator_metrics(
        each,
        live.sids,
        targets,
        populations,
        removed=denied[form],
        recommendable=live.recommendable,
        seed=config.seed + replica,
      )
      for form, each in lists.items()
    }
    for replica, lists in enumerate(predictions)
  ]
  rows = report.over_replicas(report.GENERATOR, replicas)
  width = config.decoding.beam_width
  text = text_vectors(config.embedding, table)
  if fused:
    rows |= report.over_replicas(
      report.FUSED,
      fused_metrics(
        config, stored, live, text, split, predictions, populations
      ),
    )
  ranked = baseline_ranks(workdir, stored, embeddings, text, split)
  for name, ranks in ranked.items():
    rows[name] = {
      form: {
        population: metrics.summarize(
          getattr(ranks, form), list_size=width, user_mask=mask
        )
        for population, mask in populations.items()
      }
      for form in report.FORMS
    }
  return rows


def evaluate(config: RunConfig, workdir: Workdir) -> report.Rows:
  """Ranks every test item, stores and prints the table of metrics.

  Writes `predictions/`, `report.json` and `report.md`.

  Returns:
    The report, as `measure`.

  Raises:
    InputError: No trained generator yet, or one of another catalog.
  """
  rows = measure(config, workdir)
  if not processes.is_first():
    return rows
  (workdir.root / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
  (workdir.root / "report.md").write_text(report.markdown(rows))
  report.show(rows, rich.console.Console())
  return rows
