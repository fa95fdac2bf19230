"""Fits that start from earlier ones, and what they change."""

import json

import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.stages import live_catalog, prepare, refitting, semantic_ids


def make_config(**changes):
  config = quickstart.get_config("smoke")
  for name, value in changes.items():
    section, key = name.split("__")
    config[section][key] = value
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
  """A tokenized run with two appended items."""
  workdir = stages.Workdir(tmp_path_factory.mktemp("earlier"))
  config = make_config()
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  path = workdir.root.parent / "new.jsonl"
  items = [{"item_id": f"new{n}", "title": "Mistral Sunscreen"} for n in "ab"]
  path.write_text("".join(json.dumps(item) + "\n" for item in items))
  stages.append(config, workdir, str(path))
  return workdir


@pytest.mark.parametrize("stable", [False, True])
def test_a_refit_of_the_same_items_changes_little(stable, earlier, tmp_path):
  """Warm k-means starts where it ended: hardly a step is left to take."""
  config, workdir = make_config(), stages.Workdir(tmp_path / "later")
  report = refitting.refit(config, workdir, earlier, stable=stable)
  assert (report.num_common, report.num_added) == (240, 0)
  assert report.num_removed == 2  # the appended ones
  assert report.id_changed < 0.1
  written = json.loads((workdir.root / "churn.json").read_text())
  assert written["id_changed"] == report.id_changed
  assert len(written["code_changed"]) == 4
  # The stages after it, and those before, take it as it is.
  before = {p: p.stat().st_mtime_ns for p in workdir.root.glob("[est]*/*")}
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_stable_refit_on_more_items_keeps_more_ids(earlier, tmp_path):
  """And its codebooks give the items the codes that are stored."""
  config = make_config(data__num_items=300)
  found = {}
  for stable in (False, True):
    workdir = stages.Workdir(tmp_path / str(stable))
    found[stable] = refitting.refit(config, workdir, earlier, stable=stable)
    stored = prepare.load_data(workdir)
    embeddings, table = prepare.load_embeddings(workdir, stored)
    tokenizer = semantic_ids.load_tokenizer(config, workdir, embeddings, table)
    codes = config.tokenizer.encode(tokenizer.state, table.vectors)
    np.testing.assert_array_equal(codes, tokenizer.codes)
    sids = live_catalog.load(workdir).sids
    np.testing.assert_array_equal(sids.codes[:, :3], codes)
    assert found[stable].num_added == 60
  assert found[True].id_changed <= found[False].id_changed


def test_refusals(earlier, tmp_path):
  workdir = stages.Workdir(tmp_path / "later")
  other = make_config(tokenizer__codebook_sizes=(8, 8))
  with pytest.raises(stages.InputError, match="The tokenizer of .* other set"):
    refitting.refit(other, workdir, earlier)
  nothing = stages.Workdir(tmp_path / "nothing")
  with pytest.raises(stages.InputError, match="start it with --config"):
    refitting.refit(make_config(), workdir, nothing)
  assert not workdir.root.exists()
  before = (earlier.path("tokenizer") / "manifest.json").read_bytes()
  with pytest.raises(stages.InputError, match="a --workdir of its own"):
    refitting.refit(make_config(), earlier, earlier)
  again = (earlier.path("tokenizer") / "manifest.json").read_bytes()
  assert again == before


def test_codes_that_cannot_be_renamed_are_refused(tmp_path):
  config = quickstart.get_config("smoke")
  config.tokenizer = dict(name="lsh", num_tokens=3, num_bits=3)
  config = stages.RunConfig.from_dict(config.to_dict())
  workdir = stages.Workdir(tmp_path / "earlier")
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  later = stages.Workdir(tmp_path / "later")
  with pytest.raises(stages.InputError, match="which LSH cannot"):
    refitting.refit(config, later, workdir, stable=True)
