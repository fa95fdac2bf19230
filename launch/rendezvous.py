"""Start-up of many processes: all present, all with the same settings.

`jax.distributed.initialize` ends a process without saying who is missing, so
the processes first meet on the coordinator's port: each tells process 0 who
it is and the hash of its settings, and process 0 tells all to go on or why
not. The port is free again when `meet` returns.
"""

import dataclasses
import json
import socket
import time

from gr_jax import stages

_RETRY_SECONDS = 0.2
_HEAR_SECONDS = 5  # a process speaks as soon as it is connected


@dataclasses.dataclass(frozen=True)
class Job:
  """This process's place among those of a job.

  Attributes:
    coordinator: HOST:PORT of process 0; "auto" lets JAX ask the cluster.
    num_processes: How many there are.
    process_id: This one, 0 to num_processes - 1.
    timeout_seconds: How long to wait for the others at the start.
  """

  coordinator: str
  num_processes: int
  process_id: int
  timeout_seconds: float = 300

  def __post_init__(self):
    """Refuses a place that does not exist."""
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise stages.InputError(
        f"--coordinator={self.coordinator!r} must be HOST:PORT of process 0."
      )
    if not 0 <= self.process_id < self.num_processes:
      raise stages.InputError(
        f"--process_id={self.process_id} must be in 0.."
        f"{self.num_processes - 1}, below --num_processes."
      )

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of process 0."""
    host, _, port = self.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def meet(job: Job, settings_hash: str) -> None:
  """Returns when all processes of the job are there with equal settings.

  Args:
    job: This process's place.
    settings_hash: What all must agree on.

  Raises:
    InputError: A process is missing or has other settings; raised on every
      process that is there.
  """
  if job.process_id == 0:
    refusal = _gather(job, settings_hash)
  else:
    refusal = _report(job, settings_hash)
  if refusal:
    raise stages.InputError(refusal)


def _gather(job: Job, settings_hash: str) -> str:
  """Process 0's side: hears everyone, answers everyone."""
  deadline = time.monotonic() + job.timeout_seconds
  hashes, open_ends, twice = {0: settings_hash}, [], None
  host, port = job.address
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with socket.create_server(("", port), family=family) as server:
    while len(hashes) < job.num_processes and twice is None:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        end, _ = server.accept()
      except TimeoutError:
        break
      told = _hear(end)
      if told is None:
        end.close()
        continue
      open_ends.append(end)
      process, settings = told
      twice = process if process in hashes else None
      hashes[process] = settings
    refusal = _judge(job, hashes, twice)
    for end in open_ends:
      with end:
        end.sendall(json.dumps({"refusal": refusal}).encode() + b"\n")
  return refusal


def _hear(end: socket.socket) -> tuple[int, str] | None:
  """Returns who is there with which settings; None for a stranger."""
  end.settimeout(_HEAR_SECONDS)
  try:
    with end.makefile("r") as lines:
      told = json.loads(lines.readline(1_000))
    return int(told["process_id"]), str(told["settings"])
  except (ValueError, KeyError, TypeError, OSError):
    return None  # a port scan, a health check


def _judge(job: Job, hashes: dict[int, str], twice: int | None) -> str:
  """Returns why the job cannot start, or nothing."""
  if twice is not None:
    return f"Two processes say they are --process_id={twice}."
  missing = sorted(set(range(job.num_processes)) - set(hashes))
  if missing:
    return (
      f"Process {', '.join(map(str, missing))} of {job.num_processes} did not "
      f"come within {job.timeout_seconds:g} s; see its log, and whether it "
      f"reaches {job.coordinator}."
    )
  others = [p for p, value in sorted(hashes.items()) if value != hashes[0]]
  if others:
    return (
      f"Process {', '.join(map(str, others))} of {job.num_processes} has "
      "another configuration than process 0; start all with the same flags."
    )
  return ""


def _report(job: Job, settings_hash: str) -> str:
  """The other processes' side: tells process 0, waits for its answer."""
  deadline = time.monotonic() + job.timeout_seconds
  absent = (
    f"Process 0 did not answer at {job.coordinator} within "
    f"{job.timeout_seconds:g} s; see its log."
  )
  told = {"process_id": job.process_id, "settings": settings_hash}
  while True:
    left = deadline - time.monotonic()
    if left <= 0:
      return absent
    try:
      with socket.create_connection(job.address, timeout=left) as end:
        end.sendall(json.dumps(told).encode() + b"\n")
        # Process 0 answers within its own timeout, which began later.
        end.settimeout(job.timeout_seconds + 10)
        with end.makefile("r") as lines:
          return json.loads(lines.readline())["refusal"]
    except TimeoutError:
      return absent
    except (OSError, ValueError):
      time.sleep(_RETRY_SECONDS)  # not up yet, or it went away
