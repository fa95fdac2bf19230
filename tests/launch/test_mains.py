"""Mains as processes: refusals in one line, exit status, nothing written."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = "--config=configs/quickstart.py:smoke"


def _run(main, *flags):
  return subprocess.run(
    [sys.executable, "-m", f"launch.{main}", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize(
  ("main", "flags", "message"),
  [
    ("pipeline", [QUICKSTART, "--config.task.max_histori=3"], "max_history"),
    ("pipeline", ["--config=configs/none.py"], "configs/none.py"),
    (
      "embed",
      ["--config=configs/beauty.py", "--config.data.path=/no/such"],
      "'/no/such'",
    ),
    ("recommend", ["--user=1"], "start it with --config"),
    ("report", ["runs/a"], "Unknown argument 'runs/a'"),
    ("report", ["--compare", "/no/run"], "No run in '/no/run'"),
  ],
)
def test_refusals_are_one_line_and_leave_nothing(
  tmp_path, main, flags, message
):
  workdir = tmp_path / "run"
  done = _run(main, *flags, f"--workdir={workdir}")
  assert done.returncode == 2
  errors = [line for line in done.stderr.splitlines() if line]
  assert [line[:7] for line in errors] == ["error: "]
  assert message in errors[0]
  assert not workdir.exists()
