"""Launch scripts: what they would run, and what they refuse."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import jsonschema
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


def _stub(path, script):
  """Writes a command that only says what it was called with."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/sh\n{script}\n")
  path.chmod(0o755)


ENVIRONMENT = (
  'echo "$GR_JAX_COORDINATOR $GR_JAX_NUM_PROCESSES $GR_JAX_PROCESS_ID"'
)


def test_a_tpu_worker_finds_its_place(tmp_path):
  """What the last command does on a worker, its metadata server made up."""
  saved = tmp_path / "remote"
  _stub(
    tmp_path / "bin" / "gcloud",
    f"""for word; do
  case $word in --command=*) printf %s "${{word#--command=}}" >{saved} ;; esac
done""",
  )
  _stub(tmp_path / "bin" / "git", "exit 0")
  _stub(
    tmp_path / "bin" / "curl",
    """case "$*" in
  *agent-worker-number) echo 2 ;;
  *worker-network-endpoints) echo a:1:10.0.0.5,b:2:10.0.0.6,c:3:10.0.0.7 ;;
esac""",
  )
  _stub(tmp_path / "bin" / "python3", "exit 0")
  _stub(tmp_path / "gr_jax" / ".venv" / "bin" / "pip", "exit 0")
  _stub(
    tmp_path / "gr_jax" / ".venv" / "bin" / "python",
    ENVIRONMENT + '\nprintf "%s\\n" "$@"',
  )
  path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
  done = _run(
    "tpu_pod.sh", "--name=n", "--zone=z", "--workdir=/mnt/a b",
    "--", "--config=c.py", PATH=path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  remote = saved.read_text()
  worker = subprocess.run(
    ["bash", "-c", remote],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {"PATH": path},
  )
  assert worker.stdout.splitlines() == [
    "10.0.0.5:8476 3 2",
    *["-m", "launch.pipeline", "--workdir=/mnt/a b", "--config=c.py"],
  ], worker.stderr
  assert _shellcheck("--shell=bash", "-", given=remote) == ""


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


def test_a_slurm_process_finds_its_place(tmp_path):
  _stub(tmp_path / "bin" / "scontrol", "printf 'node7\\nnode8\\n'")
  # Leaves its own flags out and starts the second node's process.
  _stub(
    tmp_path / "bin" / "srun",
    'shift 3\nSLURM_PROCID=1 exec "$@"',
  )
  _stub(
    tmp_path / ".venv" / "bin" / "python",
    ENVIRONMENT + '\nprintf "%s\\n" "$@"',
  )
  done = _run(
    "gpu_slurm.sh", "train", "--workdir=/a b",
    PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", SLURM_JOB_NUM_NODES="2",
    SLURM_JOB_ID="77", SLURM_JOB_NODELIST="node[7-8]",
    SLURM_SUBMIT_DIR=str(tmp_path),
  )  # fmt: skip
  assert done.stdout.splitlines() == [
    "node7:20077 2 1",
    *["-m", "launch.train", "--workdir=/a b"],
  ], done.stderr


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


def _schema_errors(job):
  schema = json.loads(
    (pathlib.Path(__file__).parent / "jobset_schema.json").read_text()
  )
  jsonschema.Draft202012Validator.check_schema(schema)
  return [
    e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(job)
  ]


def test_the_jobset_has_the_fields_of_its_kind():
  job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
  assert _schema_errors(job) == []


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda pod: pod.pop("containers"), "'containers' is a required property"),
    (lambda pod: pod.update(restartPolicy="Always"), "'Always' is not one of"),
    (
      lambda pod: pod.update(nodeSelectors={}),
      "'nodeSelectors' was unexpected",
    ),
    # YAML reads a number that has no quotes as one.
    (lambda pod: pod["containers"][0]["env"][1].update(value=4), "4 is not of"),
    (
      lambda pod: pod["containers"][0]["ports"][0].update(containerPort="8476"),
      "'8476' is not of type 'integer'",
    ),
  ],
)
def test_a_broken_jobset_is_found(change, message):
  job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
  (workers,) = job["spec"]["replicatedJobs"]
  change(workers["template"]["spec"]["template"]["spec"])
  (error,) = _schema_errors(job)
  assert message in error


def _shellcheck(*args, given=None):
  # Beside the interpreter, where `pip install` puts it.
  command = pathlib.Path(sys.executable).with_name("shellcheck")
  done = subprocess.run(
    [command, *args], input=given, capture_output=True, text=True
  )
  return done.stdout + done.stderr


def test_shellcheck():
  assert _shellcheck(*map(str, LAUNCH.glob("*.sh"))) == ""
