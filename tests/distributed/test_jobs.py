"""Jobs of several processes: the numbers of one, and no hang when one fails.

CPU collectives give up after 30 seconds, so these need a machine whose cores
are not all taken: processes that compile side by side must keep step.
"""

import signal
import time

import numpy as np
import pytest

from gr_jax.core import artifact, metric_writer

CONFIG = "--config=configs/quickstart.py:smoke"


def _arrays(workdir):
  return artifact.load(workdir / "generator", kind="generator").arrays


def _losses(workdir):
  rows = metric_writer.read(workdir / "training")
  return [(row["step"], row["train/loss"]) for row in rows]


def _assert_same(got, want):
  np.testing.assert_allclose(_losses(got), _losses(want), rtol=1e-5)
  arrays, wanted = _arrays(got), _arrays(want)
  assert arrays.keys() == wanted.keys()
  for name, value in arrays.items():
    np.testing.assert_allclose(value, wanted[name], atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    ["--config.mesh.rules=fsdp"],
    # Each process reads its own part of every batch.
    ["--config.data.loader=grain", "--config.mesh.replica=2"],
  ],
  ids=["fsdp", "grain"],
)
def test_two_processes_train_as_one(
  start, tokenized, trained, copy_of, options
):
  workdir = copy_of(tokenized, "two")
  flags = [CONFIG, f"--workdir={workdir}", *options]
  job = start("train", flags, num_processes=2, devices=2)
  codes, errors = job.wait()
  assert codes == [0, 0], errors
  assert "best validation" in errors[0]
  assert "best validation" not in errors[1]  # the first speaks for all
  _assert_same(workdir, trained)
  # Nothing was written twice: one row a dispatch.
  assert [step for step, _ in _losses(workdir)] == [5, 10, 15, 20]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("each", "message"),
  [
    ([["--config.mesh.model=3"]] * 2, "mesh model=3 does not divide the 4 dev"),
    (
      [["--config.evaluation.batch_size=6"]] * 2,
      "evaluation.batch_size=6 is not a multiple of the 4 devices",
    ),
    (
      [[], ["--config.optimizer.learning_rate=1.0"]],
      "Process 1 of 2 has another configuration than process 0",
    ),
  ],
  ids=["mesh", "batch", "settings"],
)
def test_every_process_refuses_in_one_line(
  start, tokenized, copy_of, each, message
):
  flags = [CONFIG, f"--workdir={copy_of(tokenized, 'two')}"]
  job = start("train", flags, num_processes=2, devices=2, each=each)
  codes, errors = job.wait(timeout=200)
  assert codes == [2, 2], errors
  for text in errors:
    (line,) = [x for x in text.splitlines() if x.startswith("error: ")]
    assert message in line
    assert "Traceback" not in text


@pytest.mark.slow
def test_four_processes_stop_together_and_one_or_two_go_on(
  start, tokenized, copy_of
):
  steps = "--config.training.num_steps=300"
  flags = [CONFIG, steps, "--config.mesh.model=2"]
  whole = copy_of(tokenized, "whole")
  job = start(
    "train", [*flags, f"--workdir={whole}"], num_processes=1, devices=2
  )
  assert job.wait()[0] == [0]
  workdir = copy_of(tokenized, "four")
  rules = "--config.mesh.rules=fsdp_tensor"
  job = start(
    "train",
    [*flags, rules, f"--workdir={workdir}"],
    num_processes=4,
    devices=2,
  )
  while len(metric_writer.read(workdir / "training")) < 5:
    assert all(p.poll() is None for p in job.processes), job.wait()
    time.sleep(0.05)
  job.processes[2].send_signal(signal.SIGTERM)  # one host is preempted
  codes, errors = job.wait()
  assert codes == [143] * 4, errors
  for count in (1, 2):
    rest = copy_of(workdir, f"rest{count}")
    job = start(
      "train",
      [*flags, rules, f"--workdir={rest}"],
      num_processes=count,
      devices=2,
    )
    codes, errors = job.wait()
    assert codes == [0] * count, errors
    assert "Training from step 0 " not in errors[0]
    _assert_same(rest, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_ends_the_job_and_nothing_is_lost(
  start, tokenized, copy_of, victim
):
  flags = [CONFIG, "--config.training.num_steps=300"]
  whole = copy_of(tokenized, "whole")
  job = start(
    "train", [*flags, f"--workdir={whole}"], num_processes=1, devices=2
  )
  assert job.wait()[0] == [0]
  workdir = copy_of(tokenized, "two")
  flags.append(f"--workdir={workdir}")
  job = start("train", flags, num_processes=2, devices=1)
  while len(metric_writer.read(workdir / "training")) < 5:
    assert all(p.poll() is None for p in job.processes), job.wait()
    time.sleep(0.05)
  job.processes[victim].kill()
  codes, errors = job.wait(timeout=120)
  assert 0 not in codes, errors
  assert not (workdir / "generator").exists()
  codes, errors = start("train", flags, num_processes=2, devices=1).wait()
  assert codes == [0, 0], errors
  _assert_same(workdir, whole)


@pytest.mark.slow
def test_the_whole_path_by_two_processes(start, tmp_path):
  reports = []
  for count in (1, 2):
    workdir = tmp_path / str(count)
    flags = [CONFIG, f"--workdir={workdir}"]
    job = start("pipeline", flags, num_processes=count, devices=2 // count)
    codes, errors = job.wait()
    assert codes == [0] * count, errors
    reports.append((workdir / "report.json").read_text())
  assert reports[0] == reports[1]
