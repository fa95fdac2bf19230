r"""Shows what a run's codes are worth, or several runs side by side.

Writes codebooks.html, one page without outside parts, and codebooks.json into
the workdir of a tokenized run:

  python -m launch.report --workdir=runs/quickstart
  python -m launch.report --workdir=runs/quickstart --projection=tsne

Prints one table of several runs and writes it as a page, too:

  python -m launch.report --compare runs/rq_vae runs/fsq --output=compared.html
"""

import pathlib
import sys

from absl import flags

from gr_jax import stages
from launch import app

_PROJECTION = flags.DEFINE_string("projection", "pca", "Map: pca or tsne.")
_COMPARE = flags.DEFINE_bool("compare", False, "Compare the workdirs named.")
_OUTPUT = flags.DEFINE_string(
  "output", "codebooks.html", "Page of the comparison."
)


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Writes the report of one run."""
  if _COMPARE.value:
    raise stages.InputError(
      "--compare needs the folders of runs: --compare runs/a runs/b."
    )
  stages.report(config, workdir, projection=_PROJECTION.value)


def compare(folders: list[str]) -> None:
  """Prints the comparison of several runs."""
  if not _COMPARE.value:
    raise stages.InputError(
      f"Unknown argument {folders[0]!r}; one run is --workdir=FOLDER, several "
      "are --compare FOLDER FOLDER."
    )
  workdirs = [stages.Workdir(pathlib.Path(folder)) for folder in folders]
  sys.stdout.write(stages.compare(workdirs, pathlib.Path(_OUTPUT.value)))


if __name__ == "__main__":
  app.run(main, with_arguments=compare)
