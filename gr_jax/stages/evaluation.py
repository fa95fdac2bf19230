"""Stage 10: the trained generator beside the baselines, on the test items."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import rich.console
from jaxtyping import Bool, Float32, Int, Int32

from gr_jax.core import artifact, processes
from gr_jax.data import splits
from gr_jax.embeddings.co_occurrence import text_vectors
from gr_jax.evaluation import (
  baselines,
  evaluator,
  metrics,
  report,
  reranking,
  shared_ids,
)
from gr_jax.evaluation.evaluator import Predictions
from gr_jax.evaluation.scorers import Histories
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import live_catalog, prediction, prepare
from gr_jax.stages import reranking as reranking_stage
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir


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
    items = prediction.drawn_items(
      catalog,
      predictions.item_index,
      removed,
      recommendable=recommendable,
      seed=seed,
    )
    drawn = metrics.target_ranks(items, targets)
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


def counted_rows(
  config: RunConfig,
  workdir: Workdir,
  stored: prepare.StoredDataset,
  live: live_catalog.LiveCatalog,
  split: splits.Split,
  text: Float32[np.ndarray, "N D"],
  predictions: Sequence[Mapping[str, Predictions]],
  denied: Mapping[str, Int32[np.ndarray, "U R"] | None],
  populations: Mapping[str, Bool[np.ndarray, "U"]],
  *,
  fused: bool,
) -> report.Rows:
  """Returns the rows of what the lists and the counters say together.

  The counters' fusion as a fourth ranking, and with `decoding.rerank` all
  that is reranked: the lists, the fusion's own, both.

  Args:
    config: The run's settings.
    workdir: Where it lies.
    stored: The data set.
    live: The semantic IDs.
    split: Its split; the test examples are judged.
    text: Vectors of the items' texts.
    predictions: For each network, the lists of each of the report's forms.
    denied: The items that each of them leaves out.
    populations: Which users to average over, by name.
    fused: Whether the lists fused with the counters are a row.
  """
  lists = [
    {
      form: prediction.drawn_items(
        live.sids,
        each.item_index,
        denied[form],
        recommendable=live.recommendable,
        seed=config.seed + network,
      )
      for form, each in forms.items()
    }
    for network, forms in enumerate(predictions)
  ]
  counters = baselines.Fusion().fit(
    stored.interactions,
    split,
    num_items=stored.catalog.num_items,
    vectors=text,
  )
  histories = Histories.create(stored.interactions, split.test)
  targets = evaluator.targets(stored.interactions, split.test)
  fusing = baselines.FusedRanks(
    counters,
    targets,
    [tuple(forms[form] for form in report.FORMS) for forms in lists],
  )
  listing = baselines.TopLists(
    counters, targets.size, config.decoding.beam_width
  )
  visitors = [fusing] * fused + [listing] * config.decoding.rerank
  baselines.visit(counters, histories, visitors, description="fusing")
  rows = {}
  if config.decoding.rerank:
    rows = reranked_rows(
      config,
      reranking_stage.load(config, workdir, stored, live),
      histories,
      targets,
      lists,
      predictions,
      {form: getattr(listing, form) for form in report.FORMS},
      populations,
    )
  if fused:
    each = [
      {
        form: _averages(config, getattr(ranks, form), populations)
        for form in report.FORMS
      }
      for ranks in fusing.results()
    ]
    rows |= report.of_networks(report.FUSED, each, config.decoding.ensemble)
  return rows


def reranked_rows(
  config: RunConfig,
  reranker: reranking_stage.Reranker,
  histories: Histories,
  targets: Int[np.ndarray, "U"],
  lists: Sequence[Mapping[str, Int[np.ndarray, "U W"]]],
  predictions: Sequence[Mapping[str, Predictions]],
  counted: Mapping[str, Int[np.ndarray, "U W"]],
  populations: Mapping[str, Bool[np.ndarray, "U"]],
) -> report.Rows:
  """Returns the rows of all that is reranked: lists, the counters', both.

  Args:
    config: The run's settings.
    reranker: The fitted weights, and what they weigh.
    histories: Of the test users.
    targets: The items that came next.
    lists: For each network, the items listed in each of the report's forms.
    predictions: Where they and their scores come from.
    counted: The items that the counters' fusion lists, likewise.
    populations: Which users to average over, by name.
  """

  def averages(features, items, weights):
    items, _ = reranking.rerank(features, items, weights)
    ranks = metrics.target_ranks(items, targets)
    return _averages(config, ranks, populations)

  alone = {}
  own, joint = [{} for _ in lists], [{} for _ in lists]
  for form, others in counted.items():
    other_features = reranker.evidence.features(
      histories, others, np.zeros(others.shape)
    )
    alone[form] = averages(other_features, others, reranker.alone)
    for network, forms in enumerate(lists):
      items = forms[form]
      features = reranker.evidence.features(
        histories, items, predictions[network][form].scores
      )
      own[network][form] = averages(features, items, reranker.own[network])
      both, features = reranking.joined(items, features, others, other_features)
      joint[network][form] = averages(features, both, reranker.joint[network])
  joined = config.decoding.ensemble
  return {
    report.COUNTERS: alone,
    **report.of_networks(report.RERANKED, own, joined),
    **report.of_networks(report.JOINT, joint, joined),
  }


def _averages(
  config: RunConfig,
  ranks: Int[np.ndarray, "U"],
  populations: Mapping[str, Bool[np.ndarray, "U"]],
) -> dict[str, dict[str, float]]:
  """Returns the metrics of each population, with intervals over users."""
  values = metrics.per_user(ranks, list_size=config.decoding.beam_width)
  return {
    name: {key: float(value[mask].mean()) for key, value in values.items()}
    | {
      report.INTERVAL + key: metrics.user_interval(values[key][mask]).half_width
      for key in report.DECIDING
    }
    for name, mask in populations.items()
  }


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
  predictions = prediction.with_ensemble(
    config, prediction.predict_test(config, workdir, stored, live, examples)
  )
  denied = prediction.denied_items(stored.interactions, examples)
  networks = [
    {
      form: generator_metrics(
        each,
        live.sids,
        targets,
        populations,
        removed=denied[form],
        recommendable=live.recommendable,
        seed=config.seed + network,
      )
      for form, each in lists.items()
    }
    for network, lists in enumerate(predictions)
  ]
  rows = report.of_networks(
    report.GENERATOR, networks, config.decoding.ensemble
  )
  width = config.decoding.beam_width
  text = text_vectors(config.embedding, table)
  if fused or config.decoding.rerank:
    rows |= counted_rows(
      config,
      workdir,
      stored,
      live,
      split,
      text,
      predictions,
      denied,
      populations,
      fused=fused,
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
