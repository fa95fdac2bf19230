"""Semantic IDs beside what they replace: quality and time of retrieval.

The same test users are served by beam search at several widths, by the exact
ranking of the whole catalog under the same model, and by nearest neighbors of
their history in embedding space: brute force, and an HNSW graph on the CPU
where faiss is installed. The user's history is removed from every list.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import logging
from jaxtyping import Int, Int32

from gr_jax.core import checks, progress, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.data import splits
from gr_jax.evaluation import (
  embedding_retrieval,
  evaluator,
  metrics,
  retrieval_report,
  shared_ids,
)
from gr_jax.stages import generator as generator_stage
from gr_jax.stages import live_catalog, prepare, tries
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tasks import windows

_TOP = 10  # of the exact list, looked for at every width


@dataclasses.dataclass(frozen=True)
class RetrievalOptions:
  """What to compare.

  Attributes:
    num_users: Test users, drawn by the config's seed; 0 takes all.
    beam_widths: Widths of beam search; the largest is the lists' length.
    exact: Whether to rank the whole catalog exactly, too. Costs the model's
      step for every prefix of the catalog and user.
    exact_users: Users ranked exactly at once; memory grows with it.
    recency: Weight of an item of the history relative to the next newer one
      in the mean that is looked up; the newest item alone is a row of its own.
  """

  num_users: int = 512
  beam_widths: tuple[int, ...] = (10, 20, 50, 100)
  exact: bool = True
  exact_users: int = 4
  recency: float = 0.7

  def __post_init__(self):
    """Refuses numbers that compare nothing."""
    if self.num_users < 0 or self.exact_users < 1:
      raise checks.InputError(
        f"num_users={self.num_users} must be 0 or more, "
        f"exact_users={self.exact_users} 1 or more."
      )
    if not self.beam_widths or min(self.beam_widths) < _TOP:
      raise checks.InputError(
        f"beam_widths={self.beam_widths} must be {_TOP} or more: "
        f"recall@{_TOP} is reported."
      )


@dataclasses.dataclass(frozen=True, eq=False)
class _Users:
  """The users that all rows serve."""

  data: windows.TrainingData
  histories: Int32[np.ndarray, "U R"]
  targets: Int[np.ndarray, "U"]
  batch_size: int

  @property
  def count(self) -> int:
    return self.targets.size


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What was measured.

  Attributes:
    num_users: Test users that every row served.
    device: What it ran on.
    rows: The table.
  """

  num_users: int
  device: str
  rows: retrieval_report.Rows


def compare(
  config: RunConfig, workdir: Workdir, options: RetrievalOptions
) -> retrieval_report.Rows:
  """Measures every row on one device, prints the table and stores it.

  Writes `retrieval.json` and `retrieval.md`.

  Raises:
    InputError: As `measure`.
  """
  found = measure(config, workdir, options)
  _write(workdir, found, options)
  return found.rows


def measure(
  config: RunConfig, workdir: Workdir, options: RetrievalOptions
) -> Comparison:
  """Measures every row on one device.

  Raises:
    InputError: No trained generator yet, or lists longer than the catalog.
  """
  stored = prepare.load_data(workdir)
  _, table = prepare.load_embeddings(workdir, stored)
  live = live_catalog.load(workdir, stored)
  saved = workdir.load_child(
    "generator", {"dataset": stored.artifact, "sids": live.sids_artifact}
  )
  vectors = table.vectors
  if live.new_vectors is not None:
    vectors = np.concatenate([vectors, live.new_vectors])
  generator = generator_stage.make_generator(config, live.sids)
  params = generator_stage.load_params(saved)
  users = _users(config, options, stored, generator)
  buckets = shared_ids.Buckets.create(live.sids, live.recommendable)
  list_size = min(max(options.beam_widths), int(live.recommendable.sum()))

  def measured(found, times, exact):
    width = found.shape[1]
    ranks = buckets.expected_ranks(found, users.targets, users.histories)
    # Only cutoffs up to 10 are kept of it: a list of 10 will do.
    values = metrics.summarize(
      ranks.ranks,
      list_size=max(width, *metrics.RECALL_CUTOFFS),
      chances=ranks.chances,
    )
    row = {k: values[k] for k in (metrics.RECALL_10, metrics.NDCG_10)} | times
    if exact is not None:
      row["exact_top_10"] = overlap(found[:, :_TOP], exact[:, :_TOP])
      row["exact_list"] = overlap(found, exact[:, :width])
    return row

  rows: dict[str, Mapping[str, float]] = {}
  trie = tries.load(workdir, live)
  exact = None
  if options.exact:
    exact, seconds = _exact_lists(
      generator, params, trie, buckets, users, options, list_size
    )
    times = {"users_per_s": users.count / seconds}
    rows["semantic IDs, exact"] = measured(exact, times, exact)
  for width in sorted({min(w, list_size) for w in options.beam_widths}):
    found, times = _beam_lists(generator, params, trie, users, width)
    rows[f"semantic IDs, beam {width}"] = measured(found, times, exact)
  kinds: dict[str, Any] = {"brute force": embedding_retrieval.BruteForce}
  if embedding_retrieval.has_hnsw():
    kinds["HNSW on CPU"] = embedding_retrieval.Hnsw
  else:
    logging.info("faiss is not installed: no HNSW rows.")
  for query, recency in (("last item", 0.0), ("history", options.recency)):
    nearest = None
    for kind, make in kinds.items():
      index = make(
        vectors, live.recommendable, recency=recency, list_size=list_size
      )
      found, times = _embedding_lists(index, users)
      nearest = found if nearest is None else nearest
      rows[f"embedding of {query}, {kind}"] = measured(found, times, nearest)
  return Comparison(users.count, jax.local_devices()[0].device_kind, rows)


def overlap(
  found: Int[np.ndarray, "U W"], exact: Int[np.ndarray, "U X"]
) -> float:
  """Returns the mean share of the exact list's items that were found."""
  hits = np.any(exact[:, :, None] == found[:, None, :], axis=2) & (exact >= 0)
  return float(np.mean(hits.sum(1) / np.maximum((exact >= 0).sum(1), 1)))


def _users(config, options, stored, generator):
  examples = splits.leave_one_out(stored.interactions).test
  if 0 < options.num_users < examples.num_examples:
    draw = rng.numpy_generator(jax.random.key(config.seed), "retrieval_users")
    chosen = draw.choice(
      examples.num_examples, options.num_users, replace=False
    )
    examples = examples.take(np.sort(chosen))
  return _Users(
    data=windows.training_data(
      stored.interactions, generator.catalog, generator.vocabulary, examples
    ),
    histories=evaluator.histories(stored.interactions, examples),
    targets=evaluator.targets(stored.interactions, examples),
    batch_size=min(config.evaluation.batch_size, examples.num_examples),
  )


def _time(run: Callable[[int], Any], users: _Users) -> dict[str, float]:
  """Times `run(number of users)`; what it needs is compiled before."""

  def median(count, repeats):
    jax.block_until_ready(run(count))
    times = []
    for _ in range(repeats):
      began = time.perf_counter()
      jax.block_until_ready(run(count))
      times.append(time.perf_counter() - began)
    return statistics.median(times)

  return {
    "users_per_s": users.batch_size / median(users.batch_size, 5),
    "ms_one_user": median(1, 11) * 1e3,
  }


def _beam_lists(generator, params, trie, users, width):
  recommend = evaluator.make_recommend_fn(
    generator.model, generator.vocabulary, trie, beam_width=width
  )
  predictions = evaluator.predict(
    recommend,
    params,
    users.data,
    generator.layout,
    batch_size=users.batch_size,
    mesh=mesh_lib.make_mesh(jax.local_devices()[:1]),
    denied_items=users.histories,
    description=f"beam {width}",
  )
  gather = jax.jit(
    lambda index: (
      windows.gather_batch(users.data, index, generator.layout).inputs
    )
  )

  def run(count):
    inputs = gather(jnp.arange(count, dtype=jnp.int32))
    result = recommend(params, inputs, jnp.asarray(users.histories[:count]))
    return np.asarray(result.item_index)

  return predictions.item_index, _time(run, users)


def _exact_lists(generator, params, trie, buckets, users, options, list_size):
  """Ranks all IDs of every user; returns lists and seconds, both in full."""
  score = evaluator.make_exact_fn(generator.model, generator.vocabulary, trie)
  size = min(options.exact_users, users.count)
  lists, seconds = [], 0.0
  with progress.bar("exact", total=users.count, unit="user") as advance:
    for start in range(0, users.count, size):
      # The last batch reaches back: one shape is compiled.
      begin = min(start, users.count - size)
      index = jnp.arange(begin, begin + size, dtype=jnp.int32)
      inputs = windows.gather_batch(users.data, index, generator.layout).inputs
      began = time.perf_counter()
      scores = np.asarray(score(params, inputs))
      if start:  # the first call compiles
        seconds += time.perf_counter() - began
      elif users.count <= size:
        began = time.perf_counter()
        jax.block_until_ready(score(params, inputs))
        seconds += time.perf_counter() - began
      ranked = rank_ids(
        scores, users.histories[begin : begin + size], buckets, list_size
      )
      lists.append(ranked[start - begin :])
      advance(len(lists[-1]))
  calls = -(-users.count // size)
  return np.concatenate(lists), seconds * calls / max(calls - 1, 1)


def rank_ids(
  scores: np.ndarray,
  removed: Int32[np.ndarray, "U R"],
  buckets: shared_ids.Buckets,
  list_size: int,
) -> Int32[np.ndarray, "U W"]:
  """Ranks IDs by their items' scores, as beam search lists them.

  Args:
    scores: float32 [U, N] of every item.
    removed: Items that each user must not get, -1 filling the rows.
    buckets: The items that each ID stands for.
    list_size: W.

  Returns:
    The first item that is left of each ID, best ID first, equal scores by
    lowest ID; -1 past the end.
  """
  result = np.full((len(scores), list_size), -1, np.int32)
  for user, (own, gone) in enumerate(zip(scores, removed, strict=True)):
    items = buckets.items[~np.isin(buckets.items, gone)]  # by ID, then item
    _, first = np.unique(buckets.group[items], return_index=True)
    items = items[first]
    order = np.argsort(-own[items], kind="stable")[:list_size]
    order = order[own[items[order]] > -np.inf]
    result[user, : order.size] = items[order]
  return result


def _embedding_lists(index, users):
  found = [
    index.search(users.histories[start : start + users.batch_size])
    for start in range(0, users.count, users.batch_size)
  ]
  times = _time(lambda count: index.search(users.histories[:count]), users)
  return np.concatenate(found), times


def _write(workdir, found, options):
  title = retrieval_report.title(found.num_users, found.device)
  (workdir.root / "retrieval.json").write_text(
    json.dumps(
      dataclasses.asdict(found) | {"options": dataclasses.asdict(options)},
      indent=1,
    )
    + "\n"
  )
  (workdir.root / "retrieval.md").write_text(
    retrieval_report.markdown(found.rows, title)
  )
  table = rich.table.Table(title=title, title_justify="left")
  cells = {
    name: retrieval_report.cells(values) for name, values in found.rows.items()
  }
  table.add_column("")
  columns = zip(*cells.values(), strict=True)
  for name, column in zip(
    retrieval_report.COLUMNS.values(), columns, strict=True
  ):
    # In a narrow terminal names wrap; figures keep their digits.
    width = max(map(len, (*column, *name.split())))
    table.add_column(name, justify="right", width=width)
  for name, row in cells.items():
    table.add_row(name, *row)
  rich.console.Console().print(table)
