r"""Takes a checkpoint that T5X trained as the run's generator.

  python -m launch.import_t5x --workdir=runs/quickstart \
    --checkpoint=runs/quickstart/t5x
"""

from absl import flags

from gr_jax import stages
from gr_jax.stages import exchange
from launch import app

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "T5X's MODEL_DIR, or a folder checkpoint_<step> in it."
)


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Imports the checkpoint that the flag names."""
  if not _CHECKPOINT.value:
    raise stages.InputError("Which checkpoint? Give --checkpoint=FOLDER.")
  exchange.import_t5x(config, workdir, _CHECKPOINT.value)


if __name__ == "__main__":
  app.run(main)
