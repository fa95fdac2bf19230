"""Many runs that differ in few settings, sharing every stage they can."""

import concurrent.futures
import dataclasses
import fnmatch
import json
import pathlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from gr_jax.core import artifact, checks, progress
from gr_jax.evaluation import handbook_report
from gr_jax.stages import handbook_cell, preemption
from gr_jax.stages.build import construct
from gr_jax.stages.config import SECTIONS, RunConfig
from gr_jax.stages.handbook_cell import Cell
from gr_jax.stages.preemption import Stopped
from gr_jax.stages.retrieval import RetrievalOptions
from gr_jax.stages.workdir import Workdir

_GRIDS, _ORDER = "grids", "cell_order"
_RETRIEVAL = "retrieval"  # what a cell compares in place of changes
_BEGIN, _END = "<!-- handbook: begin -->", "<!-- handbook: end -->"


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
        changes. A change that has a name replaces its section; "retrieval"
        holds what `RetrievalOptions` takes. `cell_order` lists all as
        GRID/CELL, those that decide most first in their grid.

    Raises:
      InputError: No grid, or a cell that a run would refuse.
    """
    sections = artifact.canonical(dict(config))
    grids, order = sections.get(_GRIDS), sections.get(_ORDER)
    names = [f"{grid}/{name}" for grid in grids or () for name in grids[grid]]
    if not names or sorted(names) != sorted(order or ()):
      raise checks.InputError(
        "The config has no 'grids', or other cells than 'cell_order' names; "
        "start from configs/handbook.py."
      )
    base = {k: v for k, v in sections.items() if k not in (_GRIDS, _ORDER)}
    cells = []
    for label in order:
      grid, _, name = label.partition("/")
      try:
        cells.append(_cell(grid, name, base, grids[grid][name]))
      except checks.InputError as error:
        raise checks.InputError(f"Cell {label}: {error}") from error
    return cls(tuple(cells), sections)

  def select(self, patterns: Sequence[str]) -> tuple[Cell, ...]:
    """Returns cells of different settings, those that tell most first.

    Of every grid the first that is new, then of every grid the second, and so
    on: whatever time there is, no grid waits for another's tail.

    Args:
      patterns: GRID/NAME with * and ? as in file names; none for all.

    Raises:
      InputError: A pattern that no cell matches.
    """
    names = [f"{cell.grid}/{cell.name}" for cell in self.cells]
    for pattern in patterns:
      if not fnmatch.filter(names, pattern):
        grids = ", ".join(dict.fromkeys(cell.grid for cell in self.cells))
        raise checks.InputError(
          f"No cell matches {pattern!r}; give GRID/NAME such as {names[0]!r} "
          f"or 'GRID/*', of the grids {grids}."
        )
    waiting: dict[str, list[Cell]] = {}
    for cell, name in zip(self.cells, names, strict=True):
      if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns):
        waiting.setdefault(cell.grid, []).append(cell)
    chosen: dict[str, Cell] = {}
    while any(waiting.values()):
      for cells in waiting.values():
        while cells:
          cell = cells.pop(0)
          if chosen.setdefault(cell.key, cell) is cell:
            break
    return tuple(chosen.values())


@dataclasses.dataclass(frozen=True)
class HandbookOptions:
  """What to run of a handbook now; changes no result.

  Attributes:
    only: Patterns of the cells to run, see `HandbookConfig.select`.
    minutes: No cell is started later than that; 0 for no limit.
    at_once: Cells run side by side in threads: while one trains, others are
      tokenized, compiled and scored.
    report_only: Reports what there is and runs nothing.
    beside: Workdirs of handbooks on other data sets, reported together with
      this one.
    docs: Markdown file that takes the tables, between two marks.
  """

  only: tuple[str, ...] = ()
  minutes: float = 0.0
  at_once: int = 1
  report_only: bool = False
  beside: tuple[str, ...] = ()
  docs: str = ""

  def __post_init__(self):
    """Refuses numbers of no sense."""
    if not self.minutes >= 0:
      raise checks.InputError(
        f"minutes={self.minutes} must be above 0, or 0 for no limit."
      )
    if self.at_once < 1:
      raise checks.InputError(f"at_once={self.at_once} must be 1 or more.")


def run(
  handbook: HandbookConfig,
  workdir: Workdir,
  options: HandbookOptions | None = None,
) -> None:
  """Runs the cells that have no result yet, and writes the report.

  Writes `handbook.json`, `handbook.md` and `handbook.html`, when it is
  stopped, too.

  Args:
    handbook: The cells.
    workdir: Where to.
    options: What to run now; all by default.

  Raises:
    InputError: The data set is refused or another than that of earlier
      results, a pattern without a cell, a workdir without a handbook, a
      document without marks.
    Stopped: On SIGTERM or SIGINT, after the running cells' checkpoints.
  """
  options = options or HandbookOptions()
  chosen = handbook.select(options.only)
  others = {
    pathlib.Path(folder).name: _read_other(folder) for folder in options.beside
  }
  if options.docs:
    _split_document(options.docs)
  shared = handbook_cell.Shared(workdir.root)
  if not options.report_only:
    _check_data(handbook, shared)
  workdir.write_config(handbook)
  try:
    if not options.report_only:
      run_cells(chosen, shared, options)
  finally:
    _report(handbook, workdir.root, others, options.docs)


def run_cells(
  cells: Sequence[Cell],
  shared: handbook_cell.Shared,
  options: HandbookOptions,
) -> None:
  """Runs every cell that has no result yet; a failure stops no other cell.

  Results lie in `cells/KEY.json`, failures in `KEY.failed`; the same call
  later keeps the results and tries the failures again.

  Args:
    cells: Of different settings, in the order to run them in.
    shared: Where to, and what they share.
    options: How many at once, and for how long.

  Raises:
    Stopped: On SIGTERM or SIGINT, after the running cells' checkpoints.
  """
  deadline = time.monotonic() + 60 * options.minutes
  waiting = [c for c in cells if not _result_path(shared.root, c.key).is_file()]
  with (
    preemption.watch() as stop_requested,
    progress.bar(
      "handbook",
      total=len(cells),
      unit="cell",
      completed=len(cells) - len(waiting),
    ) as advance,
  ):

    def attempt(cell: Cell) -> None:
      """Runs a cell unless it is too late."""
      late = options.minutes and time.monotonic() > deadline
      if not late and not stop_requested():
        _attempt(cell, shared, stop_requested, alone=options.at_once == 1)

    if options.at_once == 1:
      for cell in waiting:
        attempt(cell)
        advance()
    else:
      with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
        attempts = [pool.submit(attempt, cell) for cell in waiting]
        for done in concurrent.futures.as_completed(attempts):
          if not stop_requested():
            done.result()
          advance()
    if stop_requested():
      raise Stopped("Stopped; run the same again to go on.")


def read_result(root: pathlib.Path, cell: Cell) -> dict[str, Any]:
  """Returns a cell's result, or its "error", or why there is neither."""
  path = _result_path(root, cell.key)
  if path.is_file():
    return json.loads(path.read_text())
  failed = _failure_path(root, cell.key)
  if failed.is_file():
    return {"error": failed.read_text().strip().splitlines()[-1]}
  return {"error": handbook_report.NOT_RUN}


def records(
  handbook: HandbookConfig, root: pathlib.Path
) -> list[dict[str, Any]]:
  """Returns one record a cell, in order, for `handbook_report`."""
  return [
    {"grid": cell.grid, "name": cell.name, **read_result(root, cell)}
    for cell in handbook.cells
  ]


def _attempt(
  cell: Cell,
  shared: handbook_cell.Shared,
  stop_requested: Callable[[], bool],
  *,
  alone: bool,
) -> None:
  started, label = time.monotonic(), f"{cell.grid}/{cell.name}"
  logging.info("Cell %s", label)
  path = _result_path(shared.root, cell.key)
  failed = _failure_path(shared.root, cell.key)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    result = handbook_cell.measure(cell, shared, stop_requested)
  except Stopped:
    return  # run_cells says so
  except Exception as error:  # noqa: BLE001 (recorded; the others go on)
    failed.write_text(traceback.format_exc())
    logging.error("Cell %s failed: %s", label, error)
    return
  result |= {"seconds": time.monotonic() - started, "alone": alone}
  draft = path.with_suffix(".part")
  draft.write_text(json.dumps(result, indent=1) + "\n")
  draft.rename(path)
  failed.unlink(missing_ok=True)
  logging.info("Cell %s: done in %.0f s.", label, result["seconds"])


def _report(
  handbook: HandbookConfig,
  root: pathlib.Path,
  others: Mapping[str, Sequence[Mapping[str, Any]]],
  docs: str,
) -> None:
  own = records(handbook, root)
  data_sets = {root.name: own} | dict(others)
  text = handbook_report.markdown(data_sets)
  for name, content in (
    ("handbook.json", json.dumps(own, indent=1) + "\n"),
    ("handbook.md", text),
    ("handbook.html", handbook_report.page(data_sets)),
  ):
    (root / name).write_text(content)
  if docs:
    before, after = _split_document(docs)
    pathlib.Path(docs).write_text(f"{before}{_BEGIN}\n{text}{_END}{after}")
  missing = sum("error" in record for record in own)
  logging.info(
    "handbook: %d of %d cells have results; see %s.",
    len(own) - missing,
    len(own),
    root / "handbook.html",
  )


def _split_document(path: str) -> tuple[str, str]:
  file = pathlib.Path(path)
  text = file.read_text() if file.is_file() else ""
  before, begin, rest = text.partition(_BEGIN)
  _, end, after = rest.partition(_END)
  if not begin or not end:
    raise checks.InputError(
      f"{path!r} has no lines {_BEGIN!r} and {_END!r} to put tables between."
    )
  return before, after


def _read_other(folder: str) -> list[dict[str, Any]]:
  path = pathlib.Path(folder) / "handbook.json"
  if not path.is_file():
    raise checks.InputError(
      f"No handbook in {folder!r}; run launch.handbook there first."
    )
  return json.loads(path.read_text())


def _check_data(handbook: HandbookConfig, shared: handbook_cell.Shared) -> None:
  """Refuses data other than those of the results that are there.

  Raises:
    InputError: Of the data set, too.
  """
  root, hashes = shared.root, {}
  for cell in handbook.cells:
    key = handbook_cell.stage_key(cell.config, "dataset")
    if key not in hashes:
      hashes[key] = shared.data(cell.config)[0].artifact.hash
    found = read_result(root, cell).get("dataset", hashes[key])
    if found != hashes[key]:
      raise checks.InputError(
        f"{str(root)!r} holds results on another data set, e.g. of cell "
        f"{cell.grid}/{cell.name}; choose another --workdir."
      )


def _result_path(root: pathlib.Path, key: str) -> pathlib.Path:
  return root / "cells" / f"{key}.json"


def _failure_path(root: pathlib.Path, key: str) -> pathlib.Path:
  return root / "cells" / f"{key}.failed"


def _cell(
  grid: str, name: str, base: Mapping[str, Any], changes: Mapping[str, Any]
) -> Cell:
  changes = dict(changes)
  options = changes.pop(_RETRIEVAL, None)
  if options is not None:
    options = construct(RetrievalOptions, options, _RETRIEVAL)
  return Cell(grid, name, RunConfig.from_dict(_changed(base, changes)), options)


def _changed(
  base: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  sections = dict(base)
  for section, change in changes.items():
    checks.check_known(section, SECTIONS, "config section")
    replaced = "name" in change
    sections[section] = change if replaced else {**base[section], **change}
  return sections
