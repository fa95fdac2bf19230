"""The out-of-core benchmark runs and tells what it measured."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_small_catalog_streams(tmp_path):
  output = tmp_path / "stream.json"
  subprocess.run(
    [
      sys.executable,
      ROOT / "benchmarks" / "stream_catalog.py",
      "--num_items=2000",
      "--dim=8",
      "--codes=16,16",
      f"--folder={tmp_path}",
      f"--output={output}",
    ],
    check=True,
    timeout=300,
  )
  result = json.loads(output.read_text())
  assert set(result["parts"]) == {
    "write",
    "read",
    "check",
    "2 x 16: compile",
    "2 x 16: fit",
    "2 x 16: codes",
    "2 x 16: report",
  }
  assert 0 < result["quality"]["2 x 16"]["relative_mse"] < 1
  assert result["parts"]["2 x 16: fit"]["host_bytes"] > 0
  assert sorted(path.name for path in tmp_path.iterdir()) == ["stream.json"]
