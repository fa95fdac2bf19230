r"""Runs a grid of cells on one data set and reports what holds.

  python -m launch.handbook --config=configs/handbook.py \
    --config.data.path=DATA/beauty --workdir=runs/handbook_beauty

The same command goes on where it stopped. With --beside=runs/handbook_toys
(a finished handbook on another data set) the report covers both.
"""

from absl import flags

from gr_jax import stages
from gr_jax.stages import handbook
from launch import app

_BESIDE = flags.DEFINE_multi_string(
  "beside", [], "Workdir of a finished handbook, reported with this one."
)


def main(config: handbook.HandbookConfig, workdir: stages.Workdir) -> None:
  """Runs what is not done yet, and writes the report."""
  handbook.run(config, workdir, _BESIDE.value)


if __name__ == "__main__":
  app.run(main, settings=handbook.HandbookConfig)
