"""What all mains share: flags, logging, devices, and readable refusals."""

import logging as std_logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from gr_jax import stages
from gr_jax.core import artifact, progress
from launch import rendezvous

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Settings of the run; --config.x.y=... changes one."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run's artifacts, made if missing."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  os.environ.get("GR_JAX_COORDINATOR", ""),
  "HOST:PORT of process 0 where a job has several; 'auto' asks the cluster.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  int(os.environ.get("GR_JAX_NUM_PROCESSES", "1")),
  "Processes of the job, on all hosts.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", int(os.environ.get("GR_JAX_PROCESS_ID", "0")), "This one's."
)
_START_TIMEOUT = flags.DEFINE_integer(
  "start_timeout_seconds", 300, "How long to wait for the other processes."
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout_seconds", 100, "When a silent process counts as dead."
)
_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  "",
  "Folder of compiled programs that runs share; default: the environment "
  "variable JAX_COMPILATION_CACHE_DIR, or none.",
)


def run(
  main: Callable[[Any, stages.Workdir], None],
  *,
  settings: type[Any] = stages.RunConfig,
  with_arguments: Callable[[list[str]], None] | None = None,
) -> None:
  """Runs a main on its settings and workdir.

  Input that a user can mend ends in one line and exit status 2, anything
  else in a traceback. Without --config the settings that the workdir was
  made with are used. With --num_processes (or --coordinator=auto) it first
  joins the other processes of its job; all must have the same settings.

  Args:
    main: Takes the settings and the workdir.
    settings: What `from_dict` of makes the settings out of a config's content.
    with_arguments: Called in its place with the arguments that are no flags,
      if there are any; a main without it refuses them.
  """

  def start(argv: list[str]) -> None:
    if len(argv) > 1 and with_arguments is None:
      _refuse(f"Unknown argument {argv[1]!r}; settings are --config.x=...")
    _set_up_logging()
    try:
      if _COMPILATION_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", _COMPILATION_CACHE.value)
      if len(argv) > 1:
        progress.enable()
        with_arguments(argv[1:])
        return
      if not _WORKDIR.value:
        raise stages.InputError("Where to? Give --workdir=FOLDER.")
      workdir = stages.Workdir(pathlib.Path(_WORKDIR.value))
      config = settings.from_dict(
        workdir.read_sections()
        if _CONFIG.value is None
        else _CONFIG.value.to_dict()
      )
      _join(config)
      main(config, workdir)
    except (stages.InputError, stages.DivergedError) as error:
      _refuse(str(error))
    except stages.Stopped as stopped:
      sys.stderr.write(f"{stopped}\n")
      sys.exit(143)  # what SIGTERM would have given
    except Exception:  # noqa: BLE001 (shown in full, below)
      if not _is_distributed():
        raise
      traceback.print_exc()
      # An orderly exit waits for the other processes, which wait for this one
      # in a collective; gone, it is missed and they end, too.
      sys.stderr.flush()
      os._exit(1)

  jax.config.config_with_absl()
  app.run(start, flags_parser=_parse_flags)


def _is_distributed() -> bool:
  return _NUM_PROCESSES.value > 1 or _COORDINATOR.value == "auto"


def _join(config: Any) -> None:
  """Joins the job's other processes, if there are any.

  Raises:
    InputError: A process is missing, or has other settings.
  """
  if not _is_distributed():
    progress.enable()
    return
  options = {
    "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT.value,
    # Whoever ends early waits this long for the others.
    "shutdown_timeout_seconds": _HEARTBEAT_TIMEOUT.value,
  }
  if _COORDINATOR.value == "auto":
    jax.distributed.initialize(
      initialization_timeout=_START_TIMEOUT.value, **options
    )
  else:
    job = rendezvous.Job(
      coordinator=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
      timeout_seconds=_START_TIMEOUT.value,
    )
    rendezvous.meet(job, artifact.hash_config(config.sections))
    jax.distributed.initialize(
      job.coordinator,
      job.num_processes,
      job.process_id,
      # Asked under Slurm, JAX would take one GPU a process.
      cluster_detection_method="deactivate",
      **options,
    )
  if jax.process_index() == 0:
    progress.enable()
  else:  # the first process speaks for all
    logging.set_verbosity(logging.WARNING)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a bad one ends in one line, as other bad input does."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is not None:
      _CONFIG.value.to_dict()  # a file that cannot be read says so only here
  except flags.Error as error:
    # With a traceback of the config file in it, the reason stands last.
    _refuse(str(error).strip().splitlines()[-1])
  except (AttributeError, KeyError) as error:
    reason = str(error).replace("\\n", " ").replace("\\", "")
    _refuse(f"Unknown config key on the command line: {reason}")
  except OSError as error:
    _refuse(str(error).strip().splitlines()[-1].strip())
  else:
    return rest


def _refuse(message: str) -> None:
  sys.stderr.write(f"error: {message}\n")
  sys.exit(2)


def _set_up_logging() -> None:
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter("%(message)s"))
  # Libraries log to absl too, orbax many lines a checkpoint.
  handler.addFilter(
    lambda record: (
      "gr_jax" in pathlib.Path(record.pathname).parts
      or record.levelno >= std_logging.WARNING
    )
  )
