"""Catalogs that change after training: appended and removed items."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.core import artifact
from gr_jax.decoding import trie
from gr_jax.sids import groups
from gr_jax.stages import generator, live_catalog, prepare, tries

NEW = [
  {"item_id": f"new{n}", "title": f"Mistral Sunscreen, Shade {n}"}
  for n in range(6)
]


def make_config(policy="extra_level", **changes):
  config = quickstart.get_config("smoke")
  config.collisions = dict(name=policy)
  config.training.update(num_steps=5, eval_every_steps=5)
  config.optimizer.warmup_steps = 1
  for name, value in changes.items():
    section, key = name.split("__")
    config[section][key] = value
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
  """A workdir with data and embeddings."""
  workdir = stages.Workdir(tmp_path_factory.mktemp("run"))
  stages.embed(make_config(), workdir)
  return workdir


@pytest.fixture
def workdir(embedded, tmp_path):
  shutil.copytree(embedded.root, tmp_path / "run")
  return stages.Workdir(tmp_path / "run")


@pytest.fixture
def new_items(tmp_path):
  path = tmp_path / "new.jsonl"
  path.write_text("".join(json.dumps(item) + "\n" for item in NEW))
  return str(path)


def contents(workdir):
  """Every file of a workdir with its bytes."""
  files = (p for p in workdir.root.rglob("*") if p.is_file())
  return {p.relative_to(workdir.root): p.read_bytes() for p in files}


@pytest.mark.parametrize(
  ("policy", "changes"),
  [
    ("extra_level", {}),
    ("extra_level", {"hourglass__remove_top_codes": 2}),
    ("none", {}),
    ("random_item", {}),
    ("sparse_id", {}),
    ("knn", {"tokenizer__codebook_sizes": (8, 8, 64)}),
    ("random_last_level", {"tokenizer__codebook_sizes": (8, 8, 64)}),
    ("sinkhorn", {"tokenizer__codebook_sizes": (8, 8, 64)}),
  ],
)
def test_appended_items_get_ids_beside_the_old_ones(
  policy, changes, workdir, new_items
):
  config = make_config(policy, **changes)
  stages.tokenize(config, workdir)
  before = live_catalog.load(workdir)
  files = contents(workdir)
  stages.append(config, workdir, new_items)
  after = live_catalog.load(workdir)
  # Nothing that the generator was trained on changed, on disk or in memory.
  now = contents(workdir)
  assert {name: now[name] for name in files} == files
  num_old = before.items.num_items
  np.testing.assert_array_equal(after.sids.codes[:num_old], before.sids.codes)
  assert after.sids.codebook_sizes == before.sids.codebook_sizes
  assert after.sids.level_starts == before.sids.level_starts
  assert after.items.item_ids[num_old:] == tuple(i["item_id"] for i in NEW)
  assert after.num_appended == len(NEW)
  found = groups.group_rows(after.sids.codes, after.sids.codebook_sizes)
  if policy not in ("none", "random_item"):
    assert found.largest == 1
    assert not after.sids.shares_ids
  made = [
    generator.make_generator(config, live.sids) for live in (before, after)
  ]
  assert made[0].vocabulary == made[1].vocabulary
  assert made[0].model.config == made[1].model.config
  # And again, after the first ones.
  again = [dict(item, item_id=item["item_id"] + "b") for item in NEW[:3]]
  path = workdir.root.parent / "again.jsonl"
  path.write_text("".join(json.dumps(item) + "\n" for item in again))
  stages.append(config, workdir, str(path))
  last = live_catalog.load(workdir)
  assert last.num_appended == 9
  np.testing.assert_array_equal(
    last.sids.codes[: num_old + 6], after.sids.codes
  )


def test_only_their_codes_lead_to_appended_items(workdir, new_items):
  config = make_config("sparse_id")
  sections = {**config.sections}
  sections["task"] |= {"augmentation": "sequences", "num_user_buckets": 0}
  sections["model"] |= {"name": "rq_transformer", "direct_path": True}
  config = stages.RunConfig.from_dict(sections)
  stages.tokenize(config, workdir)
  num_old = live_catalog.load(workdir).sids.num_items
  stages.append(config, workdir, new_items)
  live = live_catalog.load(workdir)
  made = generator.make_generator(config, live.sids)
  assert made.model.direct_codes == num_old
  # Every number that the direct path leads to is that of a trained item.
  numbers = live.sids.codes[:, -1]
  np.testing.assert_array_equal(np.sort(numbers[:num_old]), np.arange(num_old))
  assert (numbers[num_old:] >= num_old).all()


def test_appended_items_are_recommended_and_removed_ones_are_not(
  workdir, new_items
):
  config = make_config()
  stages.tokenize(config, workdir)
  stages.train(config, workdir)
  stages.append(config, workdir, new_items)
  everything = stages.Request(
    user="user00017", top_k=246, keep_history=True, as_json=True
  )
  found = stages.recommend(config, workdir, everything)
  names = [item.item_id for item in found]
  assert len(names) == 246
  assert {item["item_id"] for item in NEW} <= set(names)
  assert np.all(np.diff([item.score for item in found]) <= 0)
  # A few places can be kept for them; the best known ones stay.
  few = dataclasses.replace(everything, top_k=10, min_new=3)
  mixed = [item.item_id for item in stages.recommend(config, workdir, few)]
  new = [name for name in names if name.startswith("new")]
  top = [name for name in names[:10] if name in new]
  want = max(3, len(top))
  assert [name for name in mixed if name in new] == new[:want]
  known = [name for name in names if name not in new][: 10 - want]
  assert [name for name in mixed if name not in new] == known
  # Reranked as well: no count speaks for new items, their texts do.
  reranked = make_config(decoding__rerank=True)
  again = stages.recommend(reranked, workdir, everything)
  assert {item.item_id for item in again} == set(names)
  mixed = stages.recommend(reranked, workdir, few)
  assert len({item.item_id for item in mixed} & set(new)) >= 3
  assert np.all(np.diff([item.score for item in mixed]) <= 0)
  # An appended item stands in a history like any other.
  old = [name for name in names if name.startswith("item")]
  request = dataclasses.replace(everything, user="", history=("new1", old[0]))
  assert len(stages.recommend(config, workdir, request)) == 246
  # Removing takes away, changes no score, and leaves histories valid.
  gone = ("new2", old[0], old[1])
  stages.remove(config, workdir, gone)
  left = stages.recommend(config, workdir, everything)
  want = [item for item in found if item.item_id not in gone]
  assert {i.item_id for i in left} == {i.item_id for i in want}
  np.testing.assert_allclose(
    [i.score for i in left], [i.score for i in want], atol=2e-4
  )
  request = dataclasses.replace(request, keep_history=False)
  history_left = stages.recommend(config, workdir, request)
  assert len(history_left) == 246 - 3 - 1
  # Evaluation sees the catalog of now, and keeps nothing of before.
  stages.evaluate(config, workdir)
  lists = artifact.load(workdir.path("predictions"), kind="predictions")
  index = np.flatnonzero(~live_catalog.load(workdir).recommendable)
  for form in ("nothing_removed", "history_removed"):
    assert not np.isin(
      lists.arrays[f"replica_0/{form}/item_index"], index
    ).any()
  assert live_catalog.KIND in lists.parents


def test_the_trie_is_made_from_the_one_before(workdir, new_items, monkeypatch):
  config = make_config()
  stages.tokenize(config, workdir)
  before = live_catalog.load(workdir)
  first = tries.load(workdir, before)
  stages.append(config, workdir, new_items)
  stages.remove(config, workdir, ("new2", before.items.item_ids[3]))
  live = live_catalog.load(workdir)
  want = trie.to_arrays(live.trie())
  with monkeypatch.context() as patch:
    patch.setattr(live_catalog.LiveCatalog, "trie", None)
    tries.load(workdir, live)
  stored = workdir.load(tries.KIND)
  assert stored.parents[live_catalog.KIND] == live.changes.hash
  for name, array in want.items():
    np.testing.assert_array_equal(stored.arrays[name], array)
  # A smaller catalog again: the stored trie is of no use.
  shutil.rmtree(workdir.path(live_catalog.KIND))
  tries.load(workdir, live_catalog.load(workdir))
  again = workdir.load(tries.KIND).arrays
  for name, array in trie.to_arrays(first).items():
    np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("policy", ["extra_level", "sparse_id", "knn"])
def test_no_item_gets_the_id_of_a_removed_one(policy, workdir, new_items):
  """Holes stay: a removed item can come back, and histories hold its ID."""
  changes = {"tokenizer__codebook_sizes": (8, 8, 64)} if policy == "knn" else {}
  config = make_config(policy, **changes)
  stages.tokenize(config, workdir)
  stages.append(config, workdir, new_items)
  before = live_catalog.load(workdir)
  gone = ("item00005", "new0", "new5")
  stages.remove(config, workdir, gone)
  path = workdir.root.parent / "again.jsonl"
  again = [dict(item, item_id=item["item_id"] + "b") for item in NEW]
  path.write_text("".join(json.dumps(item) + "\n" for item in again))
  stages.append(config, workdir, str(path))
  after = live_catalog.load(workdir)
  num_old = before.items.num_items
  np.testing.assert_array_equal(after.sids.codes[:num_old], before.sids.codes)
  assert not after.sids.shares_ids
  assert after.removed == set(gone)
  stages.restore(config, workdir, gone[:2])
  back = live_catalog.load(workdir)
  assert back.removed == {"new5"}
  np.testing.assert_array_equal(back.sids.codes, after.sids.codes)
  assert back.recommendable.sum() == back.items.num_items - 1


def refuse(workdir, message, action):
  before = contents(workdir)
  with pytest.raises(stages.InputError, match=message) as caught:
    action()
  assert "\n" not in str(caught.value)
  assert contents(workdir) == before


def test_refusals_write_nothing(workdir, new_items, tmp_path):
  config = make_config(collisions__spare_codes=0)
  stages.tokenize(config, workdir)

  def append(path, settings=config):
    return lambda: stages.append(settings, workdir, str(path))

  known = tmp_path / "known.jsonl"
  item = prepare.load_data(workdir).catalog.item_ids[3]
  known.write_text(
    json.dumps(NEW[0]) + "\n" + json.dumps(dict(NEW[1], item_id=item)) + "\n"
  )
  refuse(workdir, "1 of 2 new items are in the catalog", append(known))
  refuse(workdir, "No items file", append(tmp_path / "none.jsonl"))
  refuse(
    workdir,
    "--append_embeddings='v.npy' would not be read: .*'tfidf_svd' embeds the",
    lambda: stages.append(config, workdir, new_items, "v.npy"),
  )
  full = tmp_path / "full.jsonl"
  same = [dict(NEW[0], item_id=f"same{n}") for n in range(40)]
  full.write_text("".join(json.dumps(item) + "\n" for item in same))
  refuse(workdir, r"\d+ of 40 new items do not fit: up to 4\d", append(full))
  other = make_config(collisions__spare_codes=1)
  refuse(workdir, "sids' was made with other settings", append(full, other))
  for change in ({"max_iters": 3}, {"codebook_sizes": (8, 8)}):
    change = {f"tokenizer__{name}": value for name, value in change.items()}
    other = make_config(collisions__spare_codes=0, **change)
    refuse(
      workdir, "tokenizer' was made with other settings", append(full, other)
    )

  def remove(*items):
    return lambda: stages.remove(config, workdir, items)

  refuse(workdir, "'nothing'", remove("nothing"))
  everything = prepare.load_data(workdir).catalog.item_ids
  refuse(workdir, "all 240 items leaves nothing", remove(*everything))
  stages.remove(config, workdir, (item,))
  refuse(workdir, "1 of 2 items were removed before", remove(item, "item00001"))
  refuse(workdir, "1 of 2 new items were removed .* --restore", append(known))
  refuse(
    workdir,
    "1 of 2 items were not removed, the first is 'item00001'",
    lambda: stages.restore(config, workdir, (item, "item00001")),
  )
  refuse(workdir, "'no'", lambda: stages.restore(config, workdir, ("no",)))


def test_a_catalog_of_another_tokenizer_is_refused(workdir, new_items):
  config = make_config()
  stages.tokenize(config, workdir)
  stages.append(config, workdir, new_items)
  kept = shutil.copytree(workdir.path("sids"), workdir.root.parent / "sids")
  other = make_config(tokenizer__codebook_sizes=(8, 8))
  stages.tokenize(other, workdir)
  refuse(
    workdir,
    "catalog_changes' holds items appended to .* delete that folder",
    lambda: stages.append(other, workdir, new_items),
  )
  shutil.rmtree(workdir.path("sids"))
  shutil.copytree(kept, workdir.path("sids"))
  refuse(
    workdir,
    "sids' was built from another tokenizer",
    lambda: stages.append(other, workdir, new_items),
  )
