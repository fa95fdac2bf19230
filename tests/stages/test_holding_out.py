"""Items held out of training, appended, and looked for."""

import json

import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.core import artifact
from gr_jax.data import Dataset, Interactions, splits
from gr_jax.data.readers import folder
from gr_jax.data.synthetic import SyntheticData
from gr_jax.stages import holding_out, live_catalog, prepare


def make_config(path):
  config = quickstart.get_config("smoke")
  config.data = dict(name="folder", path=str(path))
  config.embedding = dict(name="precomputed")
  config.training.update(num_steps=5, eval_every_steps=5)
  config.optimizer.warmup_steps = 1
  return stages.RunConfig.from_dict(config.to_dict())


def make_interactions(histories):
  lengths = np.array([len(history) for history in histories])
  return Interactions(
    user_ids=tuple(f"u{n}" for n in range(len(histories))),
    items=np.concatenate(histories).astype(np.int32),
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
  )


CATALOG = (
  SyntheticData(num_items=240, num_users=3).load().catalog.take(range(8))
)


def test_histories_end_before_the_first_held_out_item():
  """By hand: items 2 and 5 are held out of eight."""
  histories = [[0, 1, 3, 2, 4], [4, 3, 1], [0, 1, 2, 3], [7, 6, 4, 0, 5, 2]]
  data = Dataset(CATALOG, make_interactions(histories))
  is_held_out = np.isin(np.arange(8), [2, 5])
  split = splits.cold_start_split(data.interactions, is_held_out)
  known = holding_out.known_part(data, is_held_out, split)
  assert known.catalog.item_ids == tuple(
    CATALOG.item_ids[n] for n in (0, 1, 3, 4, 6, 7)
  )
  # 0, 1, 3, 4, 6, 7 are numbered 0 to 5; the third user keeps too little.
  assert known.interactions.user_ids == ("u0", "u1", "u3")
  kept = [known.interactions.history(user).tolist() for user in range(3)]
  assert kept == [[0, 1, 2], [3, 2, 1], [5, 4, 3, 0]]
  assert split.test.target_position.tolist() == [3, 10, 16, 17]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A data folder with vectors, and the evaluation on it."""
  root = tmp_path_factory.mktemp("cold")
  data = SyntheticData(num_items=240, num_users=200).load()
  vectors = np.random.default_rng(0).normal(size=(240, 12))
  folder.write_folder(data, root / "data")
  np.save(root / "data" / "embeddings.own.npy", vectors.astype(np.float32))
  config = make_config(root / "data")
  workdir = stages.Workdir(root / "cold")
  rows = stages.cold_start(config, workdir, 0.1)
  return config, workdir, rows, data, vectors


@pytest.mark.slow
def test_nothing_but_appending_sees_the_held_out_items(finished):
  config, workdir, _, data, vectors = finished
  run = stages.Workdir(workdir.root / "run")
  stored = prepare.load_data(run)
  known = np.array(
    [data.catalog.item_ids.index(i) for i in stored.catalog.item_ids]
  )
  assert known.size == 216
  _, table = prepare.load_embeddings(run, stored)
  np.testing.assert_allclose(table.vectors, vectors[known], rtol=1e-6)
  live = live_catalog.load(run)
  assert live.num_appended == 24
  new = set(data.catalog.item_ids) - set(stored.catalog.item_ids)
  assert set(live.items.item_ids[216:]) == new
  # The run is an ordinary one: its items are recommended, old and new.
  request = stages.Request(user=stored.interactions.user_ids[0], top_k=240)
  found = {i.item_id for i in stages.recommend(run.read_config(), run, request)}
  assert new <= found


@pytest.mark.slow
def test_neighbors_equal_a_loop(finished):
  _, workdir, rows, data, vectors = finished
  stored = prepare.load_data(stages.Workdir(workdir.root / "run"))
  known = set(stored.catalog.item_ids)
  is_new = np.array([i not in known for i in data.catalog.item_ids])
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  hits, hits_among_new = [], []
  for user in range(data.interactions.num_users):
    history = data.interactions.history(user)
    for place in range(1, history.size):
      target, last = history[place], history[place - 1]
      if not is_new[target]:
        continue
      scores = unit @ unit[last]
      scores[last] = -np.inf
      hits.append(np.sum(scores > scores[target]) < 10)
      hits_among_new.append(np.sum(scores[is_new] > scores[target]) < 10)
  for ranking, found in (
    ("nothing_removed", hits),
    ("new_items", hits_among_new),
  ):
    row = rows[ranking]["text_neighbors"]
    assert row["recall@10"] == pytest.approx(np.mean(found))
  own = rows["new_items"]["generator"]
  # 24 places of a beam of 50: every new item is on the list.
  assert own["hit_rate"] == 1
  assert own["recall@10"] >= rows["nothing_removed"]["generator"]["recall@10"]
  text = (workdir.root / "cold_start.md").read_text()
  assert f"24 of 240 items held out, {len(hits):,} test examples" in text


@pytest.mark.slow
def test_a_second_run_changes_nothing(finished, caplog, capsys):
  config, workdir, rows, _, _ = finished
  run = stages.Workdir(workdir.root / "run")
  changes = artifact.load(run.path(live_catalog.KIND), kind=live_catalog.KIND)
  caplog.set_level("INFO", "absl")
  again = stages.cold_start(workdir.read_config(), workdir, 0.1)
  assert again == rows
  assert "generator: matches its settings and inputs; skipped." in caplog.text
  same = artifact.load(run.path(live_catalog.KIND), kind=live_catalog.KIND)
  assert same.hash == changes.hash
  written = json.loads((workdir.root / "cold_start.json").read_text())
  assert written == rows
  assert "held-out items alone" in capsys.readouterr().out


def test_refusals(tmp_path):
  data = SyntheticData(num_items=240, num_users=200).load()
  folder.write_folder(data, tmp_path / "data")
  config, workdir = (
    make_config(tmp_path / "data"),
    stages.Workdir(tmp_path / "x"),
  )
  for share in (0.0, 1.0, 1.5):
    with pytest.raises(stages.InputError, match="must lie between 0 and 1"):
      stages.cold_start(config, workdir, share)
  with pytest.raises(stages.InputError, match="leaves no user with 3 items"):
    stages.cold_start(config, workdir, 0.99)
  assert not workdir.root.exists()
  histories = [[2, 0, 1, 3], [2, 1, 0]]
  data = Dataset(CATALOG, make_interactions(histories))
  is_held_out = np.arange(8) == 2
  split = splits.cold_start_split(data.interactions, is_held_out)
  with pytest.raises(stages.InputError, match="chosen by a user with a hist"):
    holding_out.known_part(data, is_held_out, split)
