r"""How well items are found that were held out of training, then appended.

  python -m launch.cold_start --config=configs/quickstart.py \
    --workdir=runs/cold --share=0.05

Runs every stage on the rest, in WORKDIR/run, and writes cold_start.md.
"""

from absl import flags

from gr_jax import stages
from launch import app

_SHARE = flags.DEFINE_float("share", 0.05, "Share of the items to hold out.")


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Holds out, runs, appends and evaluates."""
  stages.cold_start(config, workdir, _SHARE.value)


if __name__ == "__main__":
  app.run(main)
