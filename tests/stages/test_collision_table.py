"""The table of collision policies, of a run's codes and of synthetic ones."""

import json
import time

import jax
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.sids import collisions, groups
from gr_jax.sids.resolution import CollisionContext
from gr_jax.stages import collision_table


def test_rows_by_hand(key):
  """Three items on one ID, two on another, one alone, of 2 x 4 codes."""
  codes = np.array([[0, 1], [0, 1], [0, 1], [1, 0], [1, 0], [1, 3]], np.int32)
  distances = np.tile(np.arange(4, dtype=np.float32), (6, 1))
  context = CollisionContext(last_level_distances=lambda rows: distances[rows])
  rows = collision_table.table(codes, (2, 4), context, key=key)
  by_name = {row.policy: row for row in rows}
  assert set(by_name) == set(collisions.POLICIES)
  for name in ("none", "random_item"):
    row = by_name[name]
    assert row.collision_rate == pytest.approx(5 / 6)
    assert row.independent_coding_rate == pytest.approx(1 / 6)
    assert (row.largest_bucket, row.num_moved) == (3, 0)
  for name in ("extra_level", "sparse_id", "knn", "random_last_level"):
    row = by_name[name]
    assert (row.collision_rate, row.largest_bucket) == (0, 1)
    assert row.num_moved == (3 if name in ("knn", "random_last_level") else 0)
  lines = collision_table.markdown(rows).splitlines()
  assert lines[2].startswith("| `none` | 0.8333 | 0.1667 | 3 | 0 | ")
  assert len(lines) == 2 + len(collisions.POLICIES)


def test_a_policy_that_refuses_is_left_out(key, caplog):
  codes = np.zeros((5, 2), np.int32)  # five items under a prefix of four
  context = CollisionContext(
    last_level_distances=lambda rows: np.zeros((rows.size, 4), np.float32)
  )
  rows = collision_table.table(codes, (2, 4), context, key=key)
  names = {row.policy for row in rows}
  assert names == {"none", "random_item", "extra_level", "sparse_id"}
  assert "knn: 1 of 5 items under 1 prefixes do not fit" in caplog.text


@pytest.mark.parametrize("shared", [0.1, 0.3])
def test_synthetic_codes_collide_as_asked(shared):
  codes = collision_table.synthetic_codes(
    50_000, np.random.default_rng(0), shared=shared
  )
  found = groups.group_rows(codes, (256, 256, 256))
  assert found.num_shared / 50_000 == pytest.approx(shared, abs=0.03)
  assert 2 < found.largest < 20


def test_a_million_items_in_seconds(key):
  """A Python loop over the 300,000 that collide would take minutes."""
  codes = collision_table.synthetic_codes(1_000_000, np.random.default_rng(0))
  started = time.process_time()
  found = collisions.POLICIES["random_last_level"]().resolve(
    codes, (256, 256, 256), key=jax.random.key(0)
  )
  assert time.process_time() - started < 60
  assert not found.shares_ids
  assert found.num_moved == int(
    (groups.group_rows(codes, (256, 256, 256)).rank > 0).sum()
  )


def test_the_table_of_a_run_counts_appended_items(tmp_path):
  config = stages.RunConfig.from_dict(quickstart.get_config("smoke").to_dict())
  workdir = stages.Workdir(tmp_path / "run")
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  before = collision_table.of_workdir(config, workdir)
  items = [{"item_id": f"new{n}", "title": "Mistral Sunscreen"} for n in "abc"]
  path = tmp_path / "new.jsonl"
  path.write_text("".join(json.dumps(item) + "\n" for item in items))
  stages.append(config, workdir, str(path))
  after = collision_table.of_workdir(config, workdir)

  def alone(text):
    cells = next(l for l in text.splitlines() if "`none`" in l).split("|")
    return float(cells[3])

  # The three share their codes, so the share of items alone falls.
  num_alone = round(alone(before) * 240)
  assert num_alone - 1 <= round(alone(after) * 243) <= num_alone
  assert alone(after) < alone(before)
  assert "| level | entropy |" in after
  assert "| `drop_level=1` | " in after
  # Of 8 codes not all can be left out, so that row is not there.
  assert "remove_top_codes" not in after
