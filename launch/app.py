"""What all mains share: flags, logging, devices, and readable refusals."""

import logging as std_logging
import os
import pathlib
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from gr_jax import stages
from gr_jax.core import progress

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Settings of the run; --config.x.y=... changes one."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run's artifacts, made if missing."
)


def run(main: Callable[[stages.RunConfig, stages.Workdir], None]) -> None:
  """Runs a main on its settings and workdir.

  Input that a user can mend ends in one line and exit status 2, anything
  else in a traceback. Without --config the settings that the workdir was
  made with are used.

  Args:
    main: Takes the settings and the workdir.
  """

  def start(argv: list[str]) -> None:
    if len(argv) > 1:
      _refuse(f"Unknown argument {argv[1]!r}; settings are --config.x=...")
    _set_up_logging()
    try:
      if not _WORKDIR.value:
        raise stages.InputError("Where to? Give --workdir=FOLDER.")
      workdir = stages.Workdir(pathlib.Path(_WORKDIR.value))
      config = (
        workdir.read_config()
        if _CONFIG.value is None
        else stages.RunConfig.from_dict(_CONFIG.value.to_dict())
      )
      main(config, workdir)
    except (stages.InputError, stages.DivergedError) as error:
      _refuse(str(error))
    except stages.Stopped as stopped:
      sys.stderr.write(f"{stopped}\n")
      sys.exit(143)  # what SIGTERM would have given

  jax.config.config_with_absl()
  app.run(start, flags_parser=_parse_flags)


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
  progress.enable()
