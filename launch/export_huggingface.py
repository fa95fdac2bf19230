r"""Writes the run's generator as a folder for Hugging Face's transformers.

  python -m launch.export_huggingface --workdir=runs/quickstart \
    --output=runs/quickstart_t5
"""

from absl import flags

from gr_jax import stages
from gr_jax.stages import exchange
from launch import app

_OUTPUT = flags.DEFINE_string("output", "", "Folder to make.")


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Writes the folder that the flag names."""
  if not _OUTPUT.value:
    raise stages.InputError("Where to? Give --output=FOLDER.")
  exchange.export_huggingface(config, workdir, _OUTPUT.value)


if __name__ == "__main__":
  app.run(main)
