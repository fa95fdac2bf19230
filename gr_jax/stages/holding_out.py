"""How well the generator finds items that it was not trained on.

A share of the items is held out: the tokenizer, the embedder and the
generator never see them, and every user's history ends before the first of
them. The run on the rest is an ordinary one; then the held-out items are
appended as new items are (`appending`), and every interaction with one of
them is a test example, with all that the user chose before it as history.
The nearest text neighbors of the last item, which need no training, are
ranked beside (the comparison of TIGER, arXiv:2305.05065, section 4.3).
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool

from gr_jax.core import checks, processes, rng
from gr_jax.data import Dataset, splits
from gr_jax.data.readers import folder
from gr_jax.embeddings.co_occurrence import text_vectors
from gr_jax.evaluation import baselines, evaluator, metrics, report
from gr_jax.evaluation.scorers import Histories
from gr_jax.stages import (
  appending,
  evaluation,
  generator,
  live_catalog,
  prediction,
  prepare,
  runs,
)
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir

# What the lists are made of; the first two rank all items, new and known.
ALL_ITEMS, HISTORY_REMOVED = report.FORMS
NEW_ITEMS = "new_items"
_TITLES = {
  ALL_ITEMS: "Ranked among all items, nothing removed",
  HISTORY_REMOVED: "Ranked among all items, the user's history removed",
  NEW_ITEMS: "Ranked among the held-out items alone",
}
_NEIGHBORS = "text_neighbors"
# Ranking -> row -> metric -> value.
Rows = Mapping[str, Mapping[str, Mapping[str, float]]]


def cold_start(config: RunConfig, workdir: Workdir, share: float) -> Rows:
  """Holds items out, runs all stages on the rest, appends and evaluates.

  The run on the rest lies in `workdir/run`, its data in `workdir/known`.
  Writes `cold_start.json` and `cold_start.md` and prints the latter. Stages
  that are done are skipped.

  Args:
    config: Settings of the run; its data set is the one to hold out from.
    workdir: Where to.
    share: Share of the items to hold out, drawn by the config's seed.

  Raises:
    InputError: A share that leaves nothing, or as the stages.
    Stopped: As `runs.train`.
  """
  generator.check_devices(config)
  with processes.together():
    dataset = config.data.load()
    is_held_out = hold_out(config, dataset, share)
    split = splits.cold_start_split(dataset.interactions, is_held_out)
    known = known_part(dataset, is_held_out, split)
  run = Workdir(workdir.root / "run")
  if processes.is_first():
    _write(config, workdir, dataset, known, is_held_out)
  processes.wait("held out items")
  workdir.write_config(config)
  run_config = _config_of_known(config, workdir)
  runs.embed(run_config, run)
  runs.tokenize(run_config, run)
  runs.train(run_config, run)
  held_out = set(_ids(dataset, is_held_out))
  if not held_out <= set(live_catalog.load(run).items.item_ids):
    vectors = str(_vectors(workdir)) if config.embedding.reads_files else ""
    appending.append(run_config, run, str(_new_items(workdir)), vectors)
  rows = _measure(run_config, run, dataset, split)
  if processes.is_first():
    text = json.dumps(rows, indent=1) + "\n"
    (workdir.root / "cold_start.json").write_text(text)
    text = markdown(rows, dataset, is_held_out, split)
    (workdir.root / "cold_start.md").write_text(text)
    sys.stdout.write(text)
  return rows


def hold_out(
  config: RunConfig, dataset: Dataset, share: float
) -> Bool[np.ndarray, "N"]:
  """Draws the items to hold out.

  Raises:
    InputError: The share is not between 0 and 1.
  """
  if not 0 < share < 1:
    raise checks.InputError(
      f"--share={share} must lie between 0 and 1; it is the share of the "
      "items to hold out."
    )
  num_items = dataset.catalog.num_items
  draw = rng.numpy_generator(jax.random.key(config.seed), "held_out_items")
  count = max(1, round(share * num_items))
  is_held_out = np.zeros(num_items, bool)
  is_held_out[draw.choice(num_items, count, replace=False)] = True
  return is_held_out


def known_part(
  dataset: Dataset, is_held_out: Bool[np.ndarray, "N"], split: splits.Split
) -> Dataset:
  """Returns the data without held-out items and all that came after them.

  Items are numbered anew, in their order; users who keep less than the three
  items of leave-one-out are left out.

  Args:
    dataset: All data.
    is_held_out: The items to hold out.
    split: `splits.cold_start_split` of them.

  Raises:
    InputError: No user is left, or no example to test.
  """
  if not split.test.num_examples:
    raise checks.InputError(
      f"None of the {int(is_held_out.sum())} held-out items was chosen by a "
      "user with a history; raise --share."
    )
  data = dataset.interactions
  first = np.full(data.num_users, data.num_interactions)
  chosen = np.flatnonzero(is_held_out[data.items])
  np.minimum.at(first, data.user_index[chosen], chosen)
  before = data.select(
    np.arange(data.num_interactions) < first[data.user_index]
  )
  kept = before.at_least(3)
  if not kept.num_users:
    raise checks.InputError(
      f"Holding out {int(is_held_out.sum())} of {is_held_out.size} items "
      "leaves no user with 3 items; lower --share."
    )
  number = np.cumsum(~is_held_out, dtype=np.int32) - np.int32(1)
  return Dataset(
    dataset.catalog.take(np.flatnonzero(~is_held_out)),
    dataclasses.replace(kept, items=number[kept.items]),
  )


def _write(
  config: RunConfig,
  workdir: Workdir,
  dataset: Dataset,
  known: Dataset,
  is_held_out: Bool[np.ndarray, "N"],
) -> None:
  """Writes the known data as a folder, and the held-out items as new ones."""
  shutil.rmtree(_known(workdir), ignore_errors=True)
  folder.write_folder(known, _known(workdir))
  new = dataset.catalog.take(np.flatnonzero(is_held_out))
  folder.write_catalog(new, _new_items(workdir))
  if config.embedding.reads_files:
    vectors = np.load(config.embedding.source(dataset), mmap_mode="r")
    np.save(_known(workdir) / "embeddings.known.npy", vectors[~is_held_out])
    np.save(_vectors(workdir), vectors[is_held_out])


def _config_of_known(config: RunConfig, workdir: Workdir) -> RunConfig:
  """The settings of the run on the known part."""
  sections = dict(config.sections)
  sections["data"] = {
    "name": "folder",
    "path": str(_known(workdir)),
    "loader": config.loader,
  }
  if config.embedding.reads_files:
    sections["embedding"] = sections["embedding"] | {"path": "", "vectors": ""}
  return RunConfig.from_dict(sections)


def _known(workdir: Workdir) -> pathlib.Path:
  return workdir.root / "known"


def _new_items(workdir: Workdir) -> pathlib.Path:
  return workdir.root / "new_items.jsonl.gz"


def _vectors(workdir: Workdir) -> pathlib.Path:
  return workdir.root / "new_vectors.npy"


def _ids(
  dataset: Dataset, is_held_out: Bool[np.ndarray, "N"]
) -> tuple[str, ...]:
  ids = dataset.catalog.item_ids
  return tuple(ids[n] for n in np.flatnonzero(is_held_out))


def _measure(
  config: RunConfig, run: Workdir, dataset: Dataset, split: splits.Split
) -> Rows:
  """Returns the metrics of the generator and of the text neighbors."""
  stored = prepare.load_data(run)
  _, table = prepare.load_embeddings(run, stored)
  live = live_catalog.load(run, stored)
  saved = run.load_child(
    "generator", {"dataset": stored.artifact, "sids": live.sids_artifact}
  )
  # The run numbers known items first, then the appended ones.
  index = live.items.indices_of(dataset.catalog.item_ids).astype(np.int32)
  interactions = dataclasses.replace(
    dataset.interactions, items=index[dataset.interactions.items]
  )
  examples = split.test
  targets = evaluator.targets(interactions, examples)
  is_new = np.arange(live.items.num_items) >= stored.catalog.num_items
  is_new &= live.recommendable
  denied = prediction.denied_items(interactions, examples)

  scorer = baselines.BASELINES[_NEIGHBORS]().fit(
    interactions,
    split,
    num_items=live.items.num_items,
    vectors=text_vectors(
      config.embedding,
      dataclasses.replace(
        table,
        item_ids=live.items.item_ids,
        vectors=np.concatenate([table.vectors, live.new_vectors]),
      ),
    ),
  )
  histories = Histories.create(interactions, examples)
  rows = {}
  for rankings, candidates in (
    ({form: denied[form] for form in report.FORMS}, live.recommendable),
    ({NEW_ITEMS: None}, is_new),
  ):
    lists = list(
      prediction.decode(
        config,
        saved,
        live.sids,
        live_catalog.build_trie(live.sids, candidates),
        interactions,
        examples,
        rankings,
      )
    )
    neighbors = baselines.target_ranks(
      scorer, histories, targets, candidates=candidates
    )
    for ranking, removed in rankings.items():
      replicas = [
        evaluation.generator_metrics(
          each[ranking],
          live.sids,
          targets,
          {report.ALL: np.ones(examples.num_examples, bool)},
          removed=removed,
          recommendable=candidates,
          seed=config.seed + replica,
        )
        for replica, each in enumerate(lists)
      ]
      own = report.over_replicas(
        report.GENERATOR, [{ranking: each} for each in replicas]
      )
      form = ALL_ITEMS if removed is None else HISTORY_REMOVED
      beside = metrics.summarize(
        getattr(neighbors, form), list_size=config.decoding.beam_width
      )
      rows[ranking] = {
        _NEIGHBORS: beside,
        report.GENERATOR: own[report.GENERATOR][ranking][report.ALL],
      }
  logging.info("cold start: %s examples.", f"{examples.num_examples:,}")
  return rows


def markdown(
  rows: Rows,
  dataset: Dataset,
  is_held_out: Bool[np.ndarray, "N"],
  split: splits.Split,
) -> str:
  """Returns the tables as Markdown."""
  shown = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@10", "mrr")
  lines = [
    f"{int(is_held_out.sum()):,} of {dataset.catalog.num_items:,} items held "
    f"out, {split.test.num_examples:,} test examples; ± is the 95 % interval "
    "over examples.",
    "",
  ]
  for ranking, by_row in rows.items():
    lines += [
      f"### {_TITLES[ranking]}",
      "",
      "| | " + " | ".join(shown) + " |",
      "| --- |" + " ---: |" * len(shown),
    ]
    for row, values in by_row.items():
      cells = [f"{values[name]:.4f}" for name in shown]
      half = values.get(report.INTERVAL + metrics.RECALL_10)
      if half is not None:
        cells[shown.index(metrics.RECALL_10)] += f" ± {half:.4f}"
      lines.append(f"| {report.label(row)} | " + " | ".join(cells) + " |")
    lines.append("")
  return "\n".join(lines)
