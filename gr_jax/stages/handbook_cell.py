"""One cell of a handbook: its settings, its artifacts and its record."""

import contextlib
import dataclasses
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import jax
import numpy as np

from gr_jax.core import artifact, rng
from gr_jax.data import splits
from gr_jax.embeddings.co_occurrence import text_vectors
from gr_jax.evaluation import baselines, codebook_measures, metrics, report
from gr_jax.stages import (
  codebooks,
  evaluation,
  generator,
  live_catalog,
  prepare,
  runs,
  semantic_ids,
  tries,
)
from gr_jax.stages import retrieval as retrieval_stage
from gr_jax.stages.config import RunConfig
from gr_jax.stages.preemption import Stopped
from gr_jax.stages.workdir import Workdir

# The sections that each artifact is decided by, after those before it.
_STAGES = {
  "dataset": ("data",),
  "embeddings": ("embedding", "seed"),
  "tokenizer": ("tokenizer",),
  "sids": ("hourglass", "collisions"),
  "generator": ("task", "model", "training", "optimizer", "validation"),
  "predictions": ("decoding",),
}
# Artifacts beside the path; a kind that stands nowhere here is a cell's own.
_BESIDE = {"baselines": "embeddings", "trie": "sids"}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One setting of one grid.

  Attributes:
    grid: The grid's name.
    name: The cell's, in its grid.
    config: The run's settings.
    retrieval: Where given, the cell compares ways to retrieve from the
      generator of `config` in place of measuring its lists.
  """

  grid: str
  name: str
  config: RunConfig
  retrieval: retrieval_stage.RetrievalOptions | None = None

  @property
  def key(self) -> str:
    """Equal for cells of the same settings, whatever grid names them."""
    if self.retrieval is None:
      return stage_key(self.config, "predictions")
    options = dataclasses.asdict(self.retrieval)
    return artifact.hash_config([stage_key(self.config, "generator"), options])[
      :16
    ]


def stage_key(config: RunConfig, kind: str) -> str:
  """Returns the hash of all settings that decide an artifact of this kind.

  Where the data set lies is none of them.
  """
  names = []
  for stage, sections in _STAGES.items():
    names += sections
    if stage == kind:
      break
  values = {name: config.sections.get(name) for name in names}
  values["data"] = {k: v for k, v in values["data"].items() if k != "path"}
  values["seed"] = config.seed
  return artifact.hash_config(values)[:16]


class SharedWorkdir(Workdir):
  """A run's folder in which each stage lies under the hash of its settings.

  Cells with the same settings up to a stage share that stage's artifact.
  """

  def __init__(self, root: pathlib.Path, config: RunConfig):
    """Serves the artifacts of one cell."""
    super().__init__(root)
    object.__setattr__(self, "_config", config)

  def path(self, kind: str) -> pathlib.Path:
    """Returns the folder of the artifact of this kind."""
    stage = _BESIDE.get(kind, kind)
    if stage not in _STAGES:
      stage = "predictions"
    return self.root / kind / stage_key(self._config, stage)

  def write_config(self, config: Any) -> None:
    """Does nothing: a cell's settings stand in the handbook's config."""

  @property
  def training(self) -> pathlib.Path:
    """Checkpoints, metrics and TensorBoard events of the training run."""
    return self.root / "training" / stage_key(self._config, "generator")


class Shared:
  """What cells that run at the same time share beside the artifacts.

  A stage is made by one of them while those that need it wait, and data sets
  are read once.
  """

  def __init__(self, root: pathlib.Path):
    """Serves the cells of one workdir."""
    self.root = root
    self._guard = threading.Lock()
    self._locks: dict[str, threading.Lock] = {}
    self._data: dict[str, Any] = {}
    self._embedded: Set[str] = set()

  @contextlib.contextmanager
  def alone_with(self, kind: str, config: RunConfig) -> Iterator[str]:
    """Keeps others from the stage of this config; yields its key."""
    key = stage_key(config, _BESIDE.get(kind, kind))
    with self._guard:
      lock = self._locks.setdefault(f"{kind}/{key}", threading.Lock())
    with lock:
      yield key

  def data(self, config: RunConfig) -> tuple[prepare.StoredDataset, Any]:
    """Returns a cell's data set, stored and as read.

    Raises:
      InputError: The reader refuses it.
    """
    with self.alone_with("dataset", config) as key:
      if key not in self._data:
        workdir = SharedWorkdir(self.root, config)
        self._data[key] = prepare.prepare_data(config, workdir)
      return self._data[key]

  def embed(self, config: RunConfig) -> None:
    """Embeds the items, unless that was done.

    Raises:
      InputError: The embedder refuses its input.
    """
    stored, dataset = self.data(config)
    with self.alone_with("embeddings", config) as key:
      if key not in self._embedded:
        workdir = SharedWorkdir(self.root, config)
        prepare.embed(config, workdir, stored, dataset)
        self._embedded |= {key}


def measure(
  cell: Cell,
  shared: Shared,
  stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Runs the stages of one cell that are not done yet.

  Args:
    cell: The cell.
    shared: What it shares with those that run beside it.
    stop_requested: Asked between stages and while training.

  Returns:
    The record of `gr_jax.evaluation.handbook_report`, without the cell's
    name and its seconds.

  Raises:
    InputError: As the stages.
    Stopped: On request, after a checkpoint.
  """
  config, workdir = cell.config, SharedWorkdir(shared.root, cell.config)
  generator.check_devices(config)
  shared.embed(config)
  with shared.alone_with("tokenizer", config):
    _check(stop_requested)
    runs.tokenize(config, workdir)
  with shared.alone_with("generator", config):
    _check(stop_requested)
    _train(config, workdir, stop_requested)
  _check(stop_requested)
  stored = prepare.load_data(workdir)
  with shared.alone_with("trie", config):
    tries.load(workdir, live_catalog.load(workdir, stored))
  trained = workdir.load("generator")
  record = {
    "dataset": stored.artifact.hash,
    "settings": {
      name: value
      for name, value in config.sections.items()
      if name not in ("data", "evaluation", "mesh")
    },
    "device": jax.devices()[0].device_kind,
    "facts": {
      "num_parameters": trained.metadata["num_parameters"],
      "best_step": trained.metadata["best_step"],
    },
  }
  if cell.retrieval is not None:
    found = retrieval_stage.measure(config, workdir, cell.retrieval)
    return record | {"retrieval": dataclasses.asdict(found)}
  with shared.alone_with("baselines", config):
    _rank_by_baselines(config, workdir, stored)
  return record | _quality(config, workdir, record["facts"])


def _check(stop_requested: Callable[[], bool]) -> None:
  if stop_requested():
    raise Stopped("Stopped; run the same again to go on.")


def _train(config, workdir, stop_requested):
  stored = prepare.load_data(workdir)
  sids, catalog = semantic_ids.load_sids(workdir)
  if (
    generator.train(config, workdir, stored, sids, catalog, stop_requested)
    is None
  ):
    raise Stopped("Training stopped; run the same again to go on.")
  # Several times the size of the parameters, and needed no more.
  shutil.rmtree(workdir.training / "checkpoints", ignore_errors=True)


def _rank_by_baselines(config, workdir, stored):
  embeddings, table = prepare.load_embeddings(workdir, stored)
  evaluation.baseline_ranks(
    workdir,
    stored,
    embeddings,
    text_vectors(config.embedding, table),
    splits.leave_one_out(stored.interactions),
  )


def _quality(
  config: RunConfig, workdir: Workdir, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns metrics, baselines and codebook measures of a trained cell."""
  rows = evaluation.measure(config, workdir, fused=False)
  replicas = [
    row for name, row in rows.items() if name.startswith(f"{report.GENERATOR}/")
  ] or [rows[report.GENERATOR]]
  speed = workdir.load("predictions").metadata["users_per_second"]
  # Hundreds of megabytes that nothing else reads.
  shutil.rmtree(workdir.path("predictions"))
  return {
    "metrics": {
      form: {
        metric: [row[form][report.ALL][metric] for row in replicas]
        for metric in (*metrics.RANKING_METRICS, metrics.INVALID_RATE)
      }
      for form in report.FORMS
    },
    "baselines": {
      name: {form: row[form][report.ALL] for form in report.FORMS}
      for name, row in rows.items()
      if name in baselines.BASELINES
    },
    "codebook": _codebook(config, workdir),
    "facts": {**facts, "users_per_second": speed},
  }


def _codebook(config: RunConfig, workdir: Workdir) -> dict[str, float]:
  """Returns the measures of a cell's codes that might predict its metric."""
  run = codebooks.load_run(config, workdir, name="cell")
  draws = rng.numpy_generator(jax.random.key(config.seed), "codebook_report")
  found = codebook_measures.measure(run, generator=draws)
  levels, rates = found["levels"], found["hit_rate"]
  values = {
    "utilization": np.mean([level["utilization"] for level in levels]),
    "entropy": np.mean([level["entropy"] for level in levels]),
    "Gini": np.mean([level["gini"] for level in levels]),
    "top share": max(level["top_share"] for level in levels),
    "collision rate": found["ids"]["collision_rate"],
    "independent coding rate": found["ids"]["independent_coding_rate"],
    "largest bucket": found["ids"]["largest_bucket"],
    "relative MSE": found["reconstruction"]["relative_mse"],
    "cosine": found["reconstruction"]["cosine"],
    "hit rate@10 of embeddings": rates["embedding"]["hit_rate@10"],
    "hit rate@10 of codes": rates["decoded"]["hit_rate@10"],
  }
  return {name: float(value) for name, value in values.items()}
