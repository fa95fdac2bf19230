"""The whole path on shared IDs and on IDs of different lengths."""

import collections
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.data import splits
from gr_jax.evaluation import evaluator
from gr_jax.stages import (
  evaluation,
  generator,
  live_catalog,
  prediction,
  prepare,
)
from gr_jax.tasks import windows


def _run(tmp_path, **sections):
  config = quickstart.get_config("smoke")
  config.training.update(num_steps=5, eval_every_steps=5)
  config.optimizer.warmup_steps = 1
  for name, values in sections.items():
    if "name" in values and name != "model":
      config[name] = values
    else:
      config[name].update(values)
  config = stages.RunConfig.from_dict(config.to_dict())
  workdir = stages.Workdir(tmp_path / "run")
  stages.pipeline(config, workdir)
  request = stages.Request(
    user="user00017",
    top_k=240,
    keep_history=True,
    all_items=True,
    as_json=True,
  )
  found = stages.recommend(config, workdir, request)
  # A beam as wide as the catalog returns every item, once.
  assert len({item.item_id for item in found}) == len(found) == 240
  assert np.all(np.diff([item.score for item in found]) <= 0)
  report = json.loads((workdir.root / "report.json").read_text())
  _check_one_item_an_id(config, workdir, request, found)
  return live_catalog.load(workdir).sids, found, report


def _check_one_item_an_id(config, workdir, request, found):
  """By default one item of each ID is drawn."""
  request = dataclasses.replace(request, all_items=False)
  drawn = stages.recommend(config, workdir, request)
  ids = [item.semantic_id for item in drawn]
  assert len(set(ids)) == len(ids)
  assert set(ids) == {item.semantic_id for item in found}
  assert {item.item_id for item in drawn} <= {item.item_id for item in found}
  if len(ids) < len(found):  # shared IDs: not always the first of an ID
    first = {item.semantic_id: item.item_id for item in reversed(found)}
    assert any(first[item.semantic_id] != item.item_id for item in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("collisions", ["extra_level", "random_item"])
def test_ids_of_different_lengths(collisions, tmp_path):
  sids, found, report = _run(
    tmp_path,
    hourglass=dict(remove_top_codes=3),
    collisions=dict(name=collisions),
  )
  longest = 4 if collisions == "extra_level" else 3
  assert set(sids.lengths.tolist()) == {longest - 1, longest}
  assert not any("pad" in item.semantic_id for item in found)
  own = report["generator"]["nothing_removed"]["all"]
  assert own["invalid_rate"] == 0
  assert own["sid_level/recall@20"] >= own["recall@20"] - 1e-9


def test_shared_ids(tmp_path):
  sids, found, report = _run(tmp_path, collisions=dict(name="random_item"))
  assert sids.shares_ids
  # Items of one ID stand together, with one score.
  scores = collections.defaultdict(set)
  for item in found:
    scores[item.semantic_id].add(item.score)
  assert len(scores) < 240
  assert all(len(values) == 1 for values in scores.values())
  for form in report["generator"].values():
    own = form["all"]
    assert 0 <= own["sampled/recall@20"] <= own["sid_level/recall@20"]
    assert own["recall@20"] <= own["sid_level/recall@20"]
  _check_draws_average_to_the_report(tmp_path / "run", report)


def test_two_paths_to_an_item(tmp_path):
  _, found, report = _run(
    tmp_path,
    collisions=dict(name="sparse_id"),
    model=dict(name="rq_transformer", direct_path=True),
    task=dict(augmentation="sequences", num_user_buckets=0),
  )
  # Both are probabilities of items, and what is no item has a little.
  total = np.exp([item.score for item in found]).sum()
  assert 0.5 < total <= 1 + 1e-5
  assert report["generator"]["nothing_removed"]["all"]["invalid_rate"] == 0


def test_networks_recommend_as_one(tmp_path):
  sids, _, report = _run(
    tmp_path,
    training=dict(replicas=2),
    decoding=dict(ensemble=True, rerank=True),
  )
  workdir = stages.Workdir(tmp_path / "run")
  # What the run asked for it gave reranked; without, it is the mean over the
  # networks of every item's probability.
  config = workdir.read_config()
  sections = config.sections | {
    "decoding": config.sections["decoding"] | {"rerank": False}
  }
  config = stages.RunConfig.from_dict(sections)
  request = stages.Request(user="user00017", top_k=240, keep_history=True)
  found = stages.recommend(config, workdir, request)
  made = generator.make_generator(config, sids)
  stored = prepare.load_data(workdir)
  user = stored.interactions.user_ids.index("user00017")
  data = windows.history_data(
    [stored.interactions.history(user).tolist()],
    made.vocabulary.tokens_from_codes(sids.codes),
    None,
  )
  batch = windows.gather_batch(data, jnp.zeros(1, jnp.int32), made.layout)
  score = evaluator.make_exact_fn(made.model, made.vocabulary, made.trie)
  saved = workdir.load("generator")
  both = [
    np.asarray(score(generator.load_params(saved, r), batch.inputs))[0]
    for r in range(2)
  ]
  assert not np.allclose(*both, atol=1e-3)
  mean = np.logaddexp(*both) - np.log(2)
  want = {id_: mean[i] for i, id_ in enumerate(sids.item_ids)}
  assert {item.item_id for item in found} == set(want)
  for item in found:
    assert item.score == pytest.approx(want[item.item_id], abs=2e-3)
  networks = {"", "/0", "/1"}
  for row in ("", "_reranked", "_and_counters_reranked", "_and_fusion"):
    assert {f"generator{row}{n}" for n in networks} <= report.keys()
    assert (
      "interval/ndcg@10" in report[f"ensemble{row}"]["history_removed"]["all"]
    )
  assert workdir.load("reranker").arrays["own"].shape == (3, 6)
  assert "| ensemble, reranked |" in (workdir.root / "report.md").read_text()


def _check_draws_average_to_the_report(root, report):
  """What is reported as exact is the mean of what is reported as drawn."""
  workdir = stages.Workdir(root)
  stored = prepare.load_data(workdir)
  live = live_catalog.load(workdir, stored)
  examples = splits.leave_one_out(stored.interactions).test
  (lists,) = prediction.predict_test(
    workdir.read_config(), workdir, stored, live, examples
  )
  denied = prediction.denied_items(stored.interactions, examples)
  for form, predictions in lists.items():
    draws = [
      evaluation.generator_metrics(
        predictions,
        live.sids,
        evaluator.targets(stored.interactions, examples),
        {"all": np.ones(examples.num_examples, bool)},
        removed=denied[form],
        seed=seed,
      )["all"]["sampled/recall@20"]
      for seed in range(100)
    ]
    own = report["generator"][form]["all"]
    assert draws[0] == own["sampled/recall@20"]
    error = np.std(draws) / 10 + 1e-9
    assert abs(np.mean(draws) - own["recall@20"]) < 4 * error
