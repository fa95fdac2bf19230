"""Real processes on loopback, joined by `jax.distributed`."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from configs import quickstart
from gr_jax import stages

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 20


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _environment(devices: int) -> dict[str, str]:
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }


class Job:
  """Some processes of one main; ended with the test, whatever happens."""

  def __init__(self, main, flags, *, num_processes, devices, each=()):
    port, self.processes = _free_port(), []
    for index in range(num_processes):
      command = [sys.executable, "-m", f"launch.{main}", *flags]
      if num_processes > 1:
        command += [
          f"--coordinator=127.0.0.1:{port}",
          f"--num_processes={num_processes}",
          f"--process_id={index}",
          "--start_timeout_seconds=120",
          "--heartbeat_timeout_seconds=20",
        ]
      command += each[index] if each else []
      self.processes.append(
        subprocess.Popen(
          command,
          cwd=ROOT,
          env=_environment(devices),
          text=True,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.PIPE,
        )
      )

  def wait(self, timeout=500):
    """Returns exit statuses and what was written to standard error."""
    errors = [p.communicate(timeout=timeout)[1] for p in self.processes]
    return [p.returncode for p in self.processes], errors

  def kill(self):
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()


@pytest.fixture
def results_of(tmp_path):
  """Runs a script as several processes; returns the JSON that each wrote.

  Its arguments are the coordinator, their number, its own number and the file
  to write. Standard output would not do: gloo's threads log there, too, in the
  middle of another line if it so happens.
  """

  def run(script, *, num_processes, devices):
    folder = tmp_path / f"of_{num_processes}"
    folder.mkdir()
    shared = [f"127.0.0.1:{_free_port()}", str(num_processes)]
    jobs = []
    try:
      for index in range(num_processes):
        own = [str(index), str(folder / f"{index}.json")]
        with (folder / f"{index}.log").open("w") as log:
          jobs.append(
            subprocess.Popen(
              [sys.executable, "-c", script, *shared, *own],
              stdout=subprocess.DEVNULL,
              stderr=log,
              env=_environment(devices),
              cwd=ROOT,
            )
          )
      statuses = [job.wait(timeout=300) for job in jobs]
    finally:
      for job in jobs:
        job.kill()
        job.wait()
    logs = [path.read_text() for path in sorted(folder.glob("*.log"))]
    assert statuses == [0] * num_processes, logs
    return [
      json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))
    ]

  return run


@pytest.fixture
def start():
  """Starts jobs and leaves none behind."""
  jobs = []

  def run(*args, **kwargs):
    jobs.append(Job(*args, **kwargs))
    return jobs[-1]

  yield run
  for job in jobs:
    job.kill()


def smoke(num_steps=NUM_STEPS):
  config = quickstart.get_config("smoke")
  config.training.num_steps = num_steps
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory):
  """A workdir with semantic IDs and nothing after them."""
  workdir = stages.Workdir(tmp_path_factory.mktemp("tokenized"))
  stages.embed(smoke(), workdir)
  stages.tokenize(smoke(), workdir)
  return workdir.root


@pytest.fixture
def copy_of(tmp_path):
  """Copies a workdir under a name."""

  def copy(folder, name):
    shutil.copytree(folder, tmp_path / name)
    return tmp_path / name

  return copy


@pytest.fixture(scope="session")
def trained(tokenized, tmp_path_factory):
  """The same trained by one process on its 8 devices."""
  root = tmp_path_factory.mktemp("trained") / "run"
  shutil.copytree(tokenized, root)
  stages.train(smoke(), stages.Workdir(root))
  return root
