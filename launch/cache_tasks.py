r"""Writes a run's examples as TFRecord files, in seqio's cache format.

python -m launch.cache_tasks --workdir=runs/quickstart
"""

from absl import flags

from gr_jax import stages
from gr_jax.stages import cache_tasks
from launch import app

_NUM_SHARDS = flags.DEFINE_integer("num_shards", 8, "Files a split.")
_SPLITS = flags.DEFINE_list("splits", [], "Which to write; all by default.")


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Writes the splits that the flags name."""
  cache_tasks.cache_tasks(
    config,
    workdir,
    num_shards=_NUM_SHARDS.value,
    splits=tuple(_SPLITS.value),
  )


if __name__ == "__main__":
  app.run(main)
