"""Cells share what they can, fail alone, and are not run twice."""

import dataclasses

import pytest

from configs import grids, handbook
from gr_jax.core.checks import InputError
from gr_jax.stages import Workdir, runs
from gr_jax.stages import handbook as stage

CELLS = {
  "decoding": {
    "constrained_beam_50": {},
    "free_beam_50": {"decoding": {"constrained": False}},
  },
  "broken": {"too_many_codes": {"tokenizer": {"codebook_sizes": (512, 512)}}},
  "collisions": {"extra_level": {"collisions": {"name": "extra_level"}}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A handbook of three different cells, one of which fails."""
  workdir = Workdir(tmp_path_factory.mktemp("handbook"))
  config = stage.HandbookConfig.from_dict(
    grids.handbook("smoke", **CELLS).to_dict()
  )
  stage.run(config, workdir)
  return config, workdir


def test_every_cell_of_the_handbook_is_a_valid_run():
  for arg in ("", "cpu", "smoke"):
    found = stage.HandbookConfig.from_dict(handbook.get_config(arg).to_dict())
    names = [(cell.grid, cell.name) for cell in found.cells]
    assert len(set(names)) == len(names) > 50
    assert names[0][0] == "tokenizer"  # what decides most is run first


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
    "predictions": 2,
  }


def test_a_failed_cell_is_reported_and_the_others_have_results(finished):
  config, workdir = finished
  by_name = {cell.name: cell for cell in config.cells}
  failed = stage.read_result(workdir.root, by_name["too_many_codes"])
  assert "512" in failed["error"]
  first, _, _, same = (
    stage.read_result(workdir.root, by_name[name])
    for name in (
      "constrained_beam_50",
      "free_beam_50",
      "too_many_codes",
      "extra_level",
    )
  )
  assert first == same
  assert first["facts"]["num_parameters"] > 0
  text = (workdir.root / "handbook.md").read_text()
  assert "512" in text
  assert "Constrained and free beam search are level." in text
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
  stage.run(config, workdir)
  assert tried == [(512, 512)]


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
        "grid_order": ["a"],
      }
    )
  config = stage.HandbookConfig.from_dict(
    grids.handbook("smoke", **CELLS).to_dict()
  )
  with pytest.raises(InputError, match="No finished handbook in"):
    stage.run(config, Workdir(tmp_path), beside=[str(tmp_path / "none")])
  assert not list(tmp_path.iterdir())


def test_keys_follow_the_settings(finished):
  config, _ = finished
  cell = config.cells[0]
  sections = dict(cell.config.sections)
  sections["evaluation"] = {"batch_size": 32}
  faster = type(cell.config).from_dict(sections)
  assert dataclasses.replace(cell, config=faster).key == cell.key
  other = type(cell.config).from_dict(sections | {"seed": 1})
  assert dataclasses.replace(cell, config=other).key != cell.key
