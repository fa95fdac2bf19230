"""Cells share what they can, fail alone, and are not run twice."""

import contextlib
import dataclasses
import json
import math
import shutil
import threading

import pytest

from configs import grids, handbook
from gr_jax.core.checks import InputError
from gr_jax.stages import Stopped, Workdir, handbook_cell, preemption, runs
from gr_jax.stages import handbook as stage

CELLS = {
  "decoding": {
    "constrained_beam_50": {},
    "free_beam_50": {"decoding": {"constrained": False}},
    "beside": {"retrieval": {"num_users": 16, "beam_widths": (10,)}},
  },
  "broken": {"too_many_codes": {"tokenizer": {"codebook_sizes": (2**24,) * 2}}},
  "collisions": {"extra_level": {"collisions": {"name": "extra_level"}}},
}


OPTIONS = stage.HandbookOptions(only=("decoding/*", "broken/*"))


def _config(**cells):
  return stage.HandbookConfig.from_dict(
    grids.handbook("smoke", **cells).to_dict()
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A handbook of four different cells, one of which fails; two at once."""
  workdir = Workdir(tmp_path_factory.mktemp("handbook"))
  config = _config(**CELLS)
  stage.run(config, workdir, dataclasses.replace(OPTIONS, at_once=2))
  return config, workdir


def test_every_cell_of_the_handbook_is_a_valid_run():
  for arg in ("", "short", "cpu", "smoke"):
    found = stage.HandbookConfig.from_dict(handbook.get_config(arg).to_dict())
    names = [(cell.grid, cell.name) for cell in found.cells]
    assert len(set(names)) == len(names) > 50
    # No grid waits for another's tail, and nothing is run twice.
    chosen = found.select(())
    grids_first = [cell.grid for cell in chosen[:11]]
    assert len(set(grids_first)) == len(grids_first)
    assert chosen[0].name == "residual_kmeans"
    keys = [cell.key for cell in chosen]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {cell.key for cell in found.cells}


@pytest.mark.parametrize("arg", ["", "short", "cpu"])
def test_tokenizers_are_compared_at_equal_bits(arg):
  found = stage.HandbookConfig.from_dict(handbook.get_config(arg).to_dict())
  bits = {
    cell.name: math.prod(cell.config.tokenizer.codebook_sizes)
    for cell in found.cells
    if cell.grid in ("tokenizer", "balance", "codebook")
  }
  assert set(bits.values()) == {2 ** (18 if arg == "cpu" else 24)}, bits


def test_patterns_choose_cells():
  found = stage.HandbookConfig.from_dict(handbook.get_config().to_dict())
  chosen = found.select(("tokenizer/rq_*", "collisions/none"))
  assert [(cell.grid, cell.name) for cell in chosen] == [
    ("tokenizer", "rq_vae"),
    ("collisions", "none"),
    ("tokenizer", "rq_opq"),
  ]
  with pytest.raises(
    InputError, match=r"No cell matches 'tokeniser/\*'; .* the grids tokenizer,"
  ):
    found.select(("tokeniser/*",))


def test_cells_with_equal_stages_share_them(finished):
  _, workdir = finished
  count = {
    kind: len(list((workdir.root / kind).iterdir()))
    for kind in ("dataset", "embeddings", "generator", "predictions")
  }
  assert count == {
    "dataset": 1,
    "embeddings": 1,
    "generator": 1,
    "predictions": 0,  # large, and of no use any more
  }
  training = workdir.root / "training"
  assert not list(training.glob("*/checkpoints"))


def test_a_failed_cell_is_reported_and_the_others_have_results(finished):
  config, workdir = finished
  by_name = {cell.name: cell for cell in config.cells}
  failed = stage.read_result(workdir.root, by_name["too_many_codes"])
  assert "512" in failed["error"]
  first, same, compared, absent = (
    stage.read_result(workdir.root, by_name[name])
    for name in ("constrained_beam_50", "extra_level", "beside", "sasrec")
  )
  assert first == same
  assert first["facts"]["num_parameters"] > 0
  assert "semantic IDs, exact" in compared["retrieval"]["rows"]
  assert absent == {"error": "not run"}
  text = (workdir.root / "handbook.md").read_text()
  assert "512" in text
  assert "Constrained and free beam search are level." in text
  assert "| sasrec | not run |" in text
  assert "16 test users" in text
  assert "free_beam_50" in (workdir.root / "handbook.html").read_text()


def test_finished_cells_are_kept_and_failed_ones_tried_again(
  finished, monkeypatch
):
  config, workdir = finished
  tried = []

  def tokenize(config, workdir):
    tried.append(config.tokenizer.codebook_sizes)
    raise InputError("Again.")

  monkeypatch.setattr(runs, "tokenize", tokenize)
  stage.run(config, workdir, OPTIONS)
  assert tried == [(512, 512)]


def test_a_report_is_built_of_cells_and_settings_alone(finished, tmp_path):
  config, workdir = finished
  docs = tmp_path / "docs.md"
  docs.write_text(
    "Before.\n<!-- handbook: begin -->\n<!-- handbook: end -->\nAfter.\n"
  )
  copy = tmp_path / workdir.root.name
  shutil.copytree(workdir.root / "cells", copy / "cells")
  options = stage.HandbookOptions(report_only=True, docs=str(docs))
  stage.run(config, Workdir(copy), options)
  text = (workdir.root / "handbook.md").read_text()
  assert (copy / "handbook.md").read_text() == text
  assert text in docs.read_text()
  assert docs.read_text().startswith("Before.\n")
  assert docs.read_text().endswith("-->\nAfter.\n")


def test_when_the_time_is_up_no_cell_is_started(tmp_path):
  config = _config(**CELLS)
  stage.run(config, Workdir(tmp_path), stage.HandbookOptions(minutes=1e-9))
  assert not (tmp_path / "cells").exists()
  assert (
    "Not run: constrained_beam_50" in (tmp_path / "handbook.md").read_text()
  )


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_stop_is_reported_and_ends_all_cells(tmp_path, monkeypatch, at_once):
  asked = threading.Event()

  def measure(cell, shared, stop_requested):
    asked.set()
    raise Stopped

  @contextlib.contextmanager
  def watch():
    yield asked.is_set

  monkeypatch.setattr(handbook_cell, "measure", measure)
  monkeypatch.setattr(preemption, "watch", watch)
  with pytest.raises(Stopped):
    stage.run(
      _config(**CELLS),
      Workdir(tmp_path),
      stage.HandbookOptions(at_once=at_once),
    )
  assert "0 of 6" in (tmp_path / "handbook.md").read_text()
  assert not list((tmp_path / "cells").iterdir())


def test_refusals(finished, tmp_path):
  _, workdir = finished
  base = grids.base("smoke").to_dict()
  with pytest.raises(InputError, match="no 'grids'"):
    stage.HandbookConfig.from_dict(base)
  with pytest.raises(InputError, match=r"Cell a/b: .*'residual_mean'"):
    stage.HandbookConfig.from_dict(
      base
      | {
        "grids": {"a": {"b": {"tokenizer": {"name": "residual_mean"}}}},
        "cell_order": ["a/b"],
      }
    )
  config = _config(**CELLS)
  for options, message in (
    ({"beside": (str(tmp_path / "none"),)}, "No handbook in"),
    ({"only": ("decoding/*", "x")}, "No cell matches 'x'"),
    ({"docs": str(tmp_path / "docs.md")}, "has no lines '<!-- handbook: begin"),
  ):
    with pytest.raises(InputError, match=message):
      stage.run(config, Workdir(tmp_path), stage.HandbookOptions(**options))
  for options, message in (
    ({"minutes": -1.0}, r"minutes=-1\.0 must be above 0"),
    ({"at_once": 0}, "at_once=0 must be 1 or more"),
  ):
    with pytest.raises(InputError, match=message):
      stage.HandbookOptions(**options)
  assert not list(tmp_path.iterdir())


def test_results_on_other_data_are_refused(finished, tmp_path):
  config, workdir = finished
  shutil.copytree(workdir.root / "cells", tmp_path / "cells")
  for path in (tmp_path / "cells").glob("*.json"):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "x"}))
  with pytest.raises(InputError, match="results on another data set, e.g. of"):
    stage.run(config, Workdir(tmp_path), OPTIONS)


def test_keys_follow_the_settings(finished):
  config, _ = finished
  cell = config.cells[0]
  sections = dict(cell.config.sections)
  sections["evaluation"] = {"batch_size": 32}
  faster = type(cell.config).from_dict(sections)
  assert dataclasses.replace(cell, config=faster).key == cell.key
  assert (
    dataclasses.replace(cell, config=_with(cell, "seed", 1)).key != cell.key
  )
  # Where the data lie is no setting, what they are is.
  data = cell.config.sections["data"]
  users = data["num_users"]
  other = _with(cell, "data", data | {"num_users": users + 1})
  assert dataclasses.replace(cell, config=other).key != cell.key
  folder = {"name": "folder", "loader": "device"}
  moved = [
    dataclasses.replace(
      cell, config=_with(cell, "data", folder | {"path": path})
    ).key
    for path in ("a", "b")
  ]
  assert moved[0] == moved[1]


def _with(cell, section, value):
  return type(cell.config).from_dict({**cell.config.sections, section: value})
