r"""Fits every tokenizer of configs/tokenizers on one data set; one table.

  python -m launch.compare_tokenizers --config=configs/beauty.py \
    --config.data.path=DATA/beauty --workdir=runs/beauty_tokenizers

Each tokenizer gets a workdir of its own in the workdir, of which
launch.report shows more; one that is done is skipped. Prints the table as
Markdown and writes it as a page. On a CPU, train for less long:

  ... --epochs=60 --batch_size=256
"""

import importlib
import pkgutil
import sys

from absl import flags

from configs import tokenizers
from gr_jax import stages
from launch import app

_EPOCHS = flags.DEFINE_integer(
  "epochs", 0, "Of fits by gradient; 0: what each config says."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 0, "Of fits by gradient; 0: what each config says."
)


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Fits all and prints the table."""
  sections = {}
  for module in pkgutil.iter_modules(tokenizers.__path__):
    found = importlib.import_module(f"configs.tokenizers.{module.name}")
    section = found.get_config().tokenizer.to_dict()
    if "num_epochs" in section:
      section["num_epochs"] = _EPOCHS.value or section["num_epochs"]
      section["batch_size"] = _BATCH_SIZE.value or section["batch_size"]
    sections[module.name] = section
  sys.stdout.write(stages.compare_tokenizers(config, workdir, sections))


if __name__ == "__main__":
  app.run(main)
