"""Many runs that differ in few settings, sharing every stage they can."""

import dataclasses
import json
import pathlib
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from gr_jax.core import artifact, checks, progress, rng
from gr_jax.evaluation import (
  baselines,
  codebook_measures,
  handbook_report,
  metrics,
  report,
)
from gr_jax.stages import codebooks, evaluation, generator, runs
from gr_jax.stages.config import SECTIONS, RunConfig
from gr_jax.stages.preemption import Stopped
from gr_jax.stages.workdir import Workdir

_GRIDS, _ORDER = "grids", "grid_order"
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
  """One setting of one grid."""

  grid: str
  name: str
  config: RunConfig

  @property
  def key(self) -> str:
    """Equal for cells of the same settings, whatever grid names them."""
    return _stage_key(self.config, "predictions")


@dataclasses.dataclass(frozen=True)
class HandbookConfig:
  """All cells, every one checked before any work."""

  cells: tuple[Cell, ...]
  sections: Mapping[str, Any]

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> "HandbookConfig":
    """Builds the cells from a base config with `grids`.

    Args:
      config: A run's sections, and `grids`: grid -> cell -> section ->
        changes. A change that has a name replaces its section. `grid_order`
        names the grids, the first to be run first.

    Raises:
      InputError: No grid, or a cell that a run would refuse.
    """
    sections = artifact.canonical(dict(config))
    grids, order = sections.get(_GRIDS), sections.get(_ORDER)
    if not grids or sorted(grids) != sorted(order or ()):
      raise checks.InputError(
        "The config has no 'grids', or others than 'grid_order' names; start "
        "from configs/handbook.py."
      )
    base = {k: v for k, v in sections.items() if k not in (_GRIDS, _ORDER)}
    cells = []
    for grid in order:
      for name, changes in grids[grid].items():
        try:
          run = RunConfig.from_dict(_changed(base, changes))
        except checks.InputError as error:
          raise checks.InputError(f"Cell {grid}/{name}: {error}") from error
        cells.append(Cell(grid, name, run))
    return cls(tuple(cells), sections)


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
    return self.root / kind / _stage_key(self._config, stage)

  def write_config(self, config: Any) -> None:
    """Does nothing: a cell's settings stand in the handbook's config."""

  @property
  def training(self) -> pathlib.Path:
    """Checkpoints, metrics and TensorBoard events of the training run."""
    return self.root / "training" / _stage_key(self._config, "generator")


def run(
  handbook: HandbookConfig, workdir: Workdir, beside: Sequence[str] = ()
) -> None:
  """Runs every cell that has no result yet, and writes the report.

  Writes `handbook.json`, `handbook.md` and `handbook.html`.

  Args:
    handbook: The cells.
    workdir: Where to.
    beside: Workdirs of finished handbooks on other data sets, to be reported
      together with this one.

  Raises:
    InputError: A workdir without a handbook.
    Stopped: On SIGTERM or SIGINT, after the running cell's checkpoint.
  """
  data_sets = {}
  for folder in beside:
    path = pathlib.Path(folder) / "handbook.json"
    if not path.is_file():
      raise checks.InputError(
        f"No finished handbook in {folder!r}; run launch.handbook there first."
      )
    data_sets[pathlib.Path(folder).name] = json.loads(path.read_text())
  workdir.write_config(handbook)
  records = run_cells(handbook, workdir.root)
  data_sets = {workdir.root.name: records} | data_sets
  for name, text in (
    ("handbook.json", json.dumps(records, indent=1) + "\n"),
    ("handbook.md", handbook_report.markdown(data_sets)),
    ("handbook.html", handbook_report.page(data_sets)),
  ):
    (workdir.root / name).write_text(text)
  missing = sum("error" in record for record in records)
  logging.info(
    "handbook: %d of %d cells have results; see %s.",
    len(records) - missing,
    len(records),
    workdir.root / "handbook.html",
  )


def run_cells(
  handbook: HandbookConfig, root: pathlib.Path
) -> list[dict[str, Any]]:
  """Runs every cell that has no result yet; a failure stops no other cell.

  Results lie in `root/cells/KEY.json`, failures in `KEY.failed`; the same
  call later keeps the results and tries the failures again.

  Returns:
    One record a cell, in order, with "grid", "name" and either the result
    of `measure_cell` or "error".

  Raises:
    Stopped: On SIGTERM or SIGINT, after the running cell's checkpoint.
  """
  distinct = {cell.key: cell for cell in handbook.cells}
  done = [key for key in distinct if _result_path(root, key).is_file()]
  with progress.bar(
    "handbook", total=len(distinct), unit="cell", completed=len(done)
  ) as advance:
    for key, cell in distinct.items():
      if key in done:
        continue
      logging.info("Cell %s/%s", cell.grid, cell.name)
      _attempt(cell, root)
      advance()
  return [
    {"grid": cell.grid, "name": cell.name, **read_result(root, cell)}
    for cell in handbook.cells
  ]


def read_result(root: pathlib.Path, cell: Cell) -> dict[str, Any]:
  """Returns a cell's result, or its "error", or why there is neither."""
  path = _result_path(root, cell.key)
  if path.is_file():
    return json.loads(path.read_text())
  failed = _failure_path(root, cell.key)
  if failed.is_file():
    return {"error": failed.read_text().strip().splitlines()[-1]}
  return {"error": "not run"}


def _attempt(cell: Cell, root: pathlib.Path) -> None:
  started = time.monotonic()
  path, failed = _result_path(root, cell.key), _failure_path(root, cell.key)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    result = measure_cell(cell.config, SharedWorkdir(root, cell.config))
  except Stopped:
    raise
  except Exception as error:  # noqa: BLE001 (recorded; the others go on)
    failed.write_text(traceback.format_exc())
    logging.error("Cell %s/%s failed: %s", cell.grid, cell.name, error)
    return
  result["seconds"] = time.monotonic() - started
  draft = path.with_suffix(".part")
  draft.write_text(json.dumps(result, indent=1) + "\n")
  draft.rename(path)
  failed.unlink(missing_ok=True)


def _result_path(root: pathlib.Path, key: str) -> pathlib.Path:
  return root / "cells" / f"{key}.json"


def _failure_path(root: pathlib.Path, key: str) -> pathlib.Path:
  return root / "cells" / f"{key}.failed"


def _changed(
  base: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  sections = dict(base)
  for section, change in changes.items():
    checks.check_known(section, SECTIONS, "config section")
    replaced = "name" in change
    sections[section] = change if replaced else {**base[section], **change}
  return sections


def _stage_key(config: RunConfig, kind: str) -> str:
  names = []
  for stage, sections in _STAGES.items():
    names += sections
    if stage == kind:
      break
  values = {name: config.sections.get(name) for name in names}
  values["seed"] = config.seed
  return artifact.hash_config(values)[:16]


def measure_cell(config: RunConfig, workdir: Workdir) -> dict[str, Any]:
  """Runs the stages of one cell that are not done yet.

  Returns:
    The record of `gr_jax.evaluation.handbook_report`, without the cell's
    name and its seconds.

  Raises:
    InputError: As the stages.
    Stopped: On SIGTERM or SIGINT, after a checkpoint.
  """
  generator.check_devices(config)
  runs.embed(config, workdir)
  runs.tokenize(config, workdir)
  runs.train(config, workdir)
  rows = evaluation.measure(config, workdir)
  replicas = [
    row for name, row in rows.items() if name.startswith(f"{report.GENERATOR}/")
  ] or [rows[report.GENERATOR]]
  trained = workdir.load("generator")
  predicted = workdir.load("predictions")
  return {
    "metrics": {
      form: {
        metric: [row[form][report.ALL][metric] for row in replicas]
        for metric in metrics.RANKING_METRICS
      }
      for form in report.FORMS
    },
    "baselines": {
      name: {form: row[form][report.ALL] for form in report.FORMS}
      for name, row in rows.items()
      if name in baselines.BASELINES
    },
    "codebook": _codebook(config, workdir),
    "facts": {
      "num_parameters": trained.metadata["num_parameters"],
      "best_step": trained.metadata["best_step"],
      "users_per_second": predicted.metadata["users_per_second"],
    },
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
    "collision_rate": found["ids"]["collision_rate"],
    "independent coding rate": found["ids"]["independent_coding_rate"],
    "largest bucket": found["ids"]["largest_bucket"],
    "relative MSE": found["reconstruction"]["relative_mse"],
    "cosine": found["reconstruction"]["cosine"],
    "hit rate@10 of embeddings": rates["embedding"]["hit_rate@10"],
    "hit rate@10 of codes": rates["decoded"]["hit_rate@10"],
  }
  return {name: float(value) for name, value in values.items()}
