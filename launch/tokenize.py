r"""Fits the tokenizer and writes the semantic IDs; keeps them up to date.

  python -m launch.tokenize --workdir=runs/quickstart

New items get IDs that the trained generator can write; known ones stay:

  python -m launch.tokenize --workdir=runs/quickstart --append=new.jsonl.gz

Removed items are not recommended any more, until they are taken back:

  python -m launch.tokenize --workdir=runs/quickstart --remove=item00003
  python -m launch.tokenize --workdir=runs/quickstart --restore=item00003

A refit starts from an earlier run and reports how many IDs changed; --stable
renames codes so that few do. The generator is then trained anew:

  python -m launch.tokenize --config=configs/quickstart.py \
    --workdir=runs/later --init=runs/quickstart --stable
"""

import pathlib

from absl import flags

from gr_jax import stages
from launch import app

_APPEND = flags.DEFINE_string("append", "", "Items to append, JSON lines.")
_VECTORS = flags.DEFINE_string(
  "append_embeddings", "", "Their vectors, .npy, where vectors are files."
)
_REMOVE = flags.DEFINE_list("remove", [], "Ids of items to take away.")
_RESTORE = flags.DEFINE_list("restore", [], "Removed items to take back.")
_INIT = flags.DEFINE_string("init", "", "Workdir to start the fit from.")
_STABLE = flags.DEFINE_bool("stable", False, "Keep IDs where --init allows.")


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Tokenizes, refits, appends, removes or restores, as the flags say."""
  if _STABLE.value and not _INIT.value:
    raise stages.InputError("--stable needs --init=WORKDIR to be stable to.")
  if _INIT.value:
    earlier = stages.Workdir(pathlib.Path(_INIT.value))
    stages.refit(config, workdir, earlier, stable=_STABLE.value)
  if _APPEND.value:
    stages.append(config, workdir, _APPEND.value, _VECTORS.value)
  if _REMOVE.value:
    stages.remove(config, workdir, tuple(_REMOVE.value))
  if _RESTORE.value:
    stages.restore(config, workdir, tuple(_RESTORE.value))
  if not (_INIT.value or _APPEND.value or _REMOVE.value or _RESTORE.value):
    stages.tokenize(config, workdir)


if __name__ == "__main__":
  app.run(main)
