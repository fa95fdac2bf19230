r"""Takes a T5 that Hugging Face's transformers trained as the run's generator.

  python -m launch.import_huggingface --workdir=runs/quickstart \
    --checkpoint=runs/quickstart_finetuned
"""

from absl import flags

from gr_jax import stages
from gr_jax.stages import exchange
from launch import app

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "Folder that save_pretrained wrote."
)


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Imports the model that the flag names."""
  if not _CHECKPOINT.value:
    raise stages.InputError("Which model? Give --checkpoint=FOLDER.")
  exchange.import_huggingface(config, workdir, _CHECKPOINT.value)


if __name__ == "__main__":
  app.run(main)
