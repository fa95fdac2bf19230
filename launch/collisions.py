r"""Prints every collision policy on a run's codes, or on synthetic ones.

python -m launch.collisions --workdir=runs/beauty
python -m launch.collisions --workdir=runs/beauty --synthetic=1000000
"""

import sys

from absl import flags

from gr_jax import stages
from gr_jax.stages import collision_table
from launch import app

_SYNTHETIC = flags.DEFINE_integer("synthetic", 0, "Items instead of the run's.")


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Prints the table as Markdown."""
  if _SYNTHETIC.value:
    text = collision_table.of_synthetic(config, _SYNTHETIC.value)
  else:
    text = collision_table.of_workdir(config, workdir)
  sys.stdout.write(text)


if __name__ == "__main__":
  app.run(main)
