"""The whole path on a small synthetic data set, as a user runs it."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import beauty, office, quickstart, toys
from gr_jax import stages
from gr_jax.core import artifact, metric_writer
from gr_jax.data.readers import folder
from gr_jax.data.synthetic import SyntheticData
from gr_jax.stages import generator, prepare, semantic_ids

ROOT = pathlib.Path(__file__).parents[2]


def _config(**changes):
  config = quickstart.get_config("smoke")
  for name, value in changes.items():
    section, key = name.split("__")
    config[section][key] = value
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A workdir in which the pipeline ran once."""
  workdir = stages.Workdir(tmp_path_factory.mktemp("run"))
  stages.pipeline(_config(), workdir)
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of the finished workdir that a test may change."""
  shutil.copytree(finished.root, tmp_path / "run")
  return stages.Workdir(tmp_path / "run")


def _report(workdir):
  return json.loads((workdir.root / "report.json").read_text())


def test_the_report_has_every_row_form_and_population(finished):
  rows = _report(finished)
  assert set(rows) == {
    "generator", "popularity", "item_knn", "markov", "text_neighbors", "fusion",
    "generator_and_fusion",
  }  # fmt: skip
  for row in rows.values():
    assert set(row) == {"nothing_removed", "history_removed"}
    for form in row.values():
      assert set(form) == {"all", "later_day", "same_day"}
      assert 0 <= form["all"]["ndcg@10"] <= form["all"]["recall@10"] <= 1
  own = rows["generator"]["nothing_removed"]["all"]
  assert own["invalid_rate"] == 0
  assert own["sid_level/recall@10"] >= own["recall@10"]
  text = (finished.root / "report.md").read_text()
  assert "generator, SID level" in text
  assert "generator + rank fusion" in text


def test_a_second_run_makes_nothing_anew(workdir, caplog):
  before = {
    p: p.stat().st_mtime_ns
    for p in workdir.root.rglob("*")
    if p.is_file() and "dataset" not in p.parts
  }
  caplog.set_level("INFO", "absl")
  stages.pipeline(_config(), workdir)
  for kind in ("embeddings", "tokenizer", "sids", "generator", "predictions"):
    assert f"{kind}: matches its settings and inputs; skipped." in caplog.text
  after = {p: p.stat().st_mtime_ns for p in before}
  changed = {p.name for p in before if before[p] != after[p]}
  assert changed <= {"report.json", "report.md", "config.json"}


def test_a_changed_setting_remakes_its_stage_and_those_after(workdir, caplog):
  caplog.set_level("INFO", "absl")
  stages.embed(_config(), workdir)
  stages.tokenize(_config(tokenizer__codebook_sizes=(8, 8)), workdir)
  assert "embeddings: matches" in caplog.text
  assert "tokenizer: made with other settings" in caplog.text
  assert "sids: made from other inputs" in caplog.text
  with pytest.raises(stages.InputError, match="built from another sids"):
    stages.evaluate(_config(tokenizer__codebook_sizes=(8, 8)), workdir)
  # And training refuses the checkpoints of the old semantic IDs.
  with pytest.raises(stages.InputError, match="another configuration or"):
    stages.train(_config(tokenizer__codebook_sizes=(8, 8)), workdir)


def test_recommendations_agree_with_predictions(finished, capsys):
  """The last test user's list with nothing removed is the stored one."""
  config = _config()
  stored = prepare.load_data(finished)
  user = stored.interactions.user_ids[-1]
  history = stored.interactions.history(len(stored.interactions.user_ids) - 1)
  request = stages.Request(
    history=tuple(stored.catalog.item_ids[i] for i in history[:-1]),
    keep_history=True,
    as_json=True,
    top_k=5,
  )
  found = stages.recommend(config, finished, request)
  predicted = artifact.load(finished.path("predictions"), kind="predictions")
  want = [
    stored.catalog.item_ids[i]
    for i in predicted.arrays["replica_0/nothing_removed/item_index"][-1]
  ]
  assert [item.item_id for item in found] == want[:5]
  lines = capsys.readouterr().out.splitlines()
  assert [json.loads(line)["rank"] for line in lines] == [1, 2, 3, 4, 5]
  assert json.loads(lines[0])["title"] in stored.catalog.titles
  # By user id: the whole history is used, and nothing of it comes again.
  found = stages.recommend(config, finished, stages.Request(user=user))
  had = {stored.catalog.item_ids[i] for i in history}
  assert not had & {item.item_id for item in found}
  assert "Recommended next" in capsys.readouterr().out


def test_what_a_request_excludes_is_replaced(finished, tmp_path):
  """Allowed and denied items: the list of a catalog without the others."""
  config = _config()
  catalog = prepare.load_data(finished).catalog

  def ask(config=config, **options):
    request = stages.Request(
      history=catalog.item_ids[:3], top_k=240, as_json=True, **options
    )
    return [r.item_id for r in stages.recommend(config, finished, request)]

  every = ask(keep_history=True)
  assert sorted(every) == sorted(catalog.item_ids)
  widths = _config(decoding__level_widths=(300, 60, 240, 50))
  assert ask(widths, keep_history=True) == every  # none narrower than top_k
  had = set(catalog.item_ids[:3])
  assert ask() == [i for i in every if i not in had]
  deny = (*every[:5], every[9])
  assert ask(deny=deny) == [i for i in every if i not in {*deny, *had}]
  allowed = every[::7]
  (tmp_path / "in_stock").write_text("\n".join(sorted(allowed)) + "\n\n")
  allow = (f"@{tmp_path / 'in_stock'}",)
  got = ask(allow=allow, deny=(allowed[1],), keep_history=True)
  assert got == [i for i in allowed if i != allowed[1]]
  with pytest.raises(stages.InputError, match="No item is left to recommend"):
    ask(allow=catalog.item_ids[:2])
  with pytest.raises(stages.InputError, match="--deny cannot read '/no/such'"):
    ask(deny=("@/no/such",))
  assert (finished.path("trie") / "manifest.json").exists()


@pytest.mark.slow
def test_retrieval_is_compared(finished, capsys):
  """Beams as wide as the catalog find the exact lists."""
  options = stages.RetrievalOptions(
    num_users=30, beam_widths=(10, 300), exact_users=7
  )
  rows = stages.compare_retrieval(_config(), finished, options)
  exact, full = rows["semantic IDs, exact"], rows["semantic IDs, beam 240"]
  assert full["exact_top_10"] == full["exact_list"] == 1
  assert full["recall@10"] == exact["recall@10"]
  assert full["ndcg@10"] == exact["ndcg@10"]
  assert 0 < rows["semantic IDs, beam 10"]["exact_top_10"] <= 1
  brute = rows["embedding of last item, brute force"]
  assert brute["exact_list"] == 1
  assert 0 <= brute["ndcg@10"] <= brute["recall@10"] <= 1
  assert min(row["users_per_s"] for row in rows.values()) > 0
  stored = json.loads((finished.root / "retrieval.json").read_text())
  assert stored["rows"] == rows
  table = (finished.root / "retrieval.md").read_text()
  assert "| semantic IDs, beam 240 |" in table
  assert "30 test users, history removed" in capsys.readouterr().out
  for bad, message in (
    ({"beam_widths": (5, 50)}, r"beam_widths=\(5, 50\) must be 10 or more"),
    ({"exact_users": 0}, "exact_users=0 1 or more"),
  ):
    with pytest.raises(stages.InputError, match=message):
      stages.RetrievalOptions(**bad)


def test_bad_requests_are_refused(finished):
  with pytest.raises(stages.InputError, match="either --user=ID or"):
    stages.Request()
  with pytest.raises(stages.InputError, match="top_k must be 1"):
    stages.Request(user="1", top_k=0)
  with pytest.raises(stages.InputError, match=r"min_new=9 must lie in 0\.\.5"):
    stages.Request(user="1", top_k=5, min_new=9)
  with pytest.raises(stages.InputError, match="min_new=2 needs appended items"):
    stages.recommend(
      _config(), finished, stages.Request(user="user00017", min_new=2)
    )
  with pytest.raises(stages.InputError, match="User 'nobody' is not among"):
    stages.recommend(_config(), finished, stages.Request(user="nobody"))
  with pytest.raises(stages.InputError, match="'no-item'"):
    stages.recommend(_config(), finished, stages.Request(history=("no-item",)))


def test_stages_out_of_order_say_what_to_run(tmp_path):
  empty = stages.Workdir(tmp_path)
  with pytest.raises(stages.InputError, match="No dataset at"):
    stages.tokenize(_config(), empty)
  with pytest.raises(stages.InputError, match="start it with --config"):
    empty.read_config()
  assert not list(tmp_path.iterdir())


def test_a_folder_of_another_content_is_noticed(tmp_path):
  """The path does not count, the content does."""
  data = SyntheticData(num_items=240, num_users=40).load()
  folder.write_folder(data, tmp_path / "a")
  fewer = data.interactions.select(
    np.arange(data.interactions.num_interactions) > 0
  )
  fewer = dataclasses.replace(data, interactions=fewer)
  folder.write_folder(fewer, tmp_path / "b")

  def prepared(path, run):
    config = quickstart.get_config("smoke")
    config.data = dict(name="folder", path=str(tmp_path / path))
    workdir = stages.Workdir(tmp_path / run)
    run_config = stages.RunConfig.from_dict(config.to_dict())
    return prepare.prepare_data(run_config, workdir)[0].artifact.hash

  assert prepared("a", "one") != prepared("b", "one")
  shutil.copytree(tmp_path / "a", tmp_path / "moved")
  assert prepared("a", "two") == prepared("moved", "three")


def test_stopped_training_resumes_to_the_same_parameters(workdir, finished):
  config = _config()
  shutil.rmtree(workdir.path("generator"))
  shutil.rmtree(workdir.training)
  stored = prepare.load_data(workdir)
  sids, catalog = semantic_ids.load_sids(workdir)
  calls = iter(range(100))

  def stop_after_three():
    return next(calls) == 2

  assert (
    generator.train(config, workdir, stored, sids, catalog, stop_after_three)
    is None
  )
  assert not workdir.path("generator").exists()
  resumed = generator.train(config, workdir, stored, sids, catalog)
  whole = artifact.load(finished.path("generator"), kind="generator")
  assert resumed.hash == whole.hash
  stages.evaluate(config, workdir)
  assert _report(workdir) == _report(finished)


@pytest.mark.parametrize("config", [beauty, office, toys])
def test_configs_of_real_data_build(config):
  made = config.get_config()
  made.data.path = "somewhere"
  built = stages.RunConfig.from_dict(made.to_dict())
  assert built.data.path == "somewhere"


@pytest.mark.slow
def test_kill_minus_nine_in_mid_training_loses_nothing(tmp_path):
  """Killed at a moment nobody chose, run again: the same final report."""

  def start(name, **kwargs):
    command = [
      sys.executable, "-m", "launch.pipeline",
      "--config=configs/quickstart.py:smoke",
      "--config.training.num_steps=200",
      f"--workdir={tmp_path / name}",
    ]  # fmt: skip
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **kwargs)

  assert start("whole").wait() == 0
  for signal_number in (signal.SIGKILL, signal.SIGTERM):
    name = signal_number.name
    process = start(name)
    training = tmp_path / name / "training"
    while len(metric_writer.read(training)) < 15:
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(signal_number)
    assert process.wait() == (-9 if signal_number == signal.SIGKILL else 143)
    assert not (tmp_path / name / "generator").exists()
    assert start(name).wait() == 0
    same = [
      artifact.load(tmp_path / run / "generator", kind="generator").arrays
      for run in ("whole", name)
    ]
    for key, value in same[0].items():
      np.testing.assert_array_equal(value, same[1][key])
    reports = [
      json.loads((tmp_path / run / "report.json").read_text())
      for run in ("whole", name)
    ]
    assert reports[0] == reports[1]


def test_lists_are_reranked(workdir, capsys, caplog):
  config = _config(decoding__rerank=True)
  caplog.set_level("INFO", "absl")
  stages.pipeline(config, workdir)
  assert "predictions: matches" in caplog.text  # the lists are the same
  rows = _report(workdir)
  own, other = rows["generator"], rows["generator_reranked"]
  for form, populations in other.items():
    for population, values in populations.items():
      # Another order of the same items.
      hit_rate = own[form][population]["hit_rate"]
      assert values["hit_rate"] == pytest.approx(hit_rate)
  better = other["nothing_removed"]["all"]["ndcg@10"]
  assert better > own["nothing_removed"]["all"]["ndcg@10"]
  text = (workdir.root / "report.md").read_text()
  assert "generator, reranked, recall@10" in text
  kept = workdir.load("reranker")
  shapes = {name: array.shape for name, array in kept.arrays.items()}
  assert shapes == {"own": (1, 6), "alone": (6,), "joint": (1, 6)}
  joined = rows["generator_and_counters_reranked"]["nothing_removed"]["all"]
  assert joined["ndcg@10"] > better
  # Requests see the same order, and fit nothing anew.
  request = stages.Request(user="user00017", top_k=5)
  plain = stages.recommend(_config(), workdir, dataclasses.replace(request))
  found = stages.recommend(config, workdir, request)
  assert workdir.load("reranker").hash == kept.hash
  assert [item.rank for item in found] == [1, 2, 3, 4, 5]
  scores = [item.score for item in found]
  assert scores == sorted(scores, reverse=True)
  assert sum(np.exp(scores)) <= 1.0001
  assert [i.item_id for i in found] != [i.item_id for i in plain]
  capsys.readouterr()
