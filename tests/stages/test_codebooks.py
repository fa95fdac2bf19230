"""The codebook report of a run, and tokenizers side by side."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from configs import quickstart
from gr_jax import stages

ROOT = pathlib.Path(__file__).parents[2]


def _config():
  config = quickstart.get_config("smoke")
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """A workdir with three tokenizers' workdirs in it, and the table's text."""
  workdir = stages.Workdir(tmp_path_factory.mktemp("compared"))
  sections = {
    "autoencoder": {
      "name": "autoencoder",
      "hidden_dims": (16,),
      "code_dim": 8,
      "num_epochs": 2,
      "batch_size": 64,
      "quantizer": {"name": "pq", "codebook_sizes": (16, 16)},
    },
    "lsh": {"name": "lsh", "num_tokens": 3, "num_bits": 4},
    "rvq": {
      "name": "rvq",
      "codebook_sizes": (16, 16, 16),
      "num_epochs": 2,
      "batch_size": 64,
    },
  }
  return workdir, stages.compare_tokenizers(_config(), workdir, sections)


def test_all_tokenizers_stand_in_one_table(compared):
  workdir, text = compared
  header, _, *rows = text.splitlines()
  assert [row.split(" |")[0] for row in rows] == [
    "| autoencoder, 6 steps",
    "| lsh",
    "| rvq, 6 steps",
  ]
  for column in (
    "fit, s", "MSE", "utilization", "entropy, nats", "Gini", "collision rate",
    "ICR", "hit rate@10, embedding", "hit rate@10, codes",
  ):  # fmt: skip
    assert f" {column} |" in header
  assert all(row.count("|") == header.count("|") for row in rows)
  # Every figure is known, but lsh and rvq have no networks without codes.
  assert text.count("–") == 2
  column = header.split(" | ").index("relative MSE without codes")
  assert float(rows[0].split(" | ")[column]) > 0
  measured = json.loads((workdir.root / "codebooks.json").read_text())
  assert [run["codebook_sizes"] for run in measured] == [[16] * 2] + [
    [16] * 3
  ] * 2
  page = (workdir.root / "codebooks.html").read_text()
  assert "rvq, 6 steps" in page


def test_a_second_comparison_fits_nothing_anew(compared, caplog):
  workdir, _ = compared
  caplog.set_level("INFO", "absl")
  stages.tokenize(_config_of(workdir, "lsh"), _own(workdir, "lsh"))
  assert "tokenizer: matches its settings and inputs; skipped." in caplog.text


def _own(workdir, name):
  return stages.Workdir(workdir.root / name)


def _config_of(workdir, name):
  return _own(workdir, name).read_config()


def test_the_report_of_a_run_is_one_page_and_its_figures(compared):
  own = _own(compared[0], "rvq")
  done = subprocess.run(
    [sys.executable, "-m", "launch.report", f"--workdir={own.root}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  page = (own.root / "codebooks.html").read_text()
  for section in ("Codes", "Hourglass", "Collisions", "Map", "Semantic IDs"):
    assert f">{section}</h2>" in page
  # Nothing is fetched from elsewhere.
  assert not re.search(r'(src|href)="(?!data:|#)', page)
  measures = json.loads((own.root / "codebooks.json").read_text())
  assert measures["name"] == "rvq"
  assert measures["resolved"]["codebook_sizes"][:3] == [16, 16, 16]
  assert len(measures["reconstruction"]["by_level"]) == 4
  assert set(measures["hit_rate"]) >= {"embedding", "decoded"}


def test_runs_of_one_folder_name_are_told_apart(compared, tmp_path):
  first = _own(compared[0], "lsh")
  again = stages.Workdir(tmp_path / "lsh")
  again.root.symlink_to(first.root)
  text = stages.compare([first, again], tmp_path / "new" / "page.html")
  assert f"| {first.root} |" in text
  assert f"| {again.root} |" in text
  assert (tmp_path / "new" / "page.json").exists()


def test_a_page_of_another_kind_is_refused(compared, tmp_path):
  with pytest.raises(stages.InputError, match=r"name it \*\.html, not .*x\.md"):
    stages.compare([_own(compared[0], "lsh")], tmp_path / "x.md")
