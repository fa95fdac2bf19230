r"""Amazon 2014 Beauty: residual k-means IDs and TIGER's 4 + 4 layers.

  python -m launch.pipeline --config=configs/beauty.py \
    --config.data.path=DATA/beauty --workdir=runs/beauty

DATA/beauty is a folder as the README describes, with embeddings of the items'
texts in it (`embeddings.NAME.npy`). `configs/beauty.py:cpu` shrinks network and
training to what one CPU core does in 8 minutes, `:cpu_hour` to an hour.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  c = common.amazon2014(arg)
  c.data.expected_counts = (22_363, 12_101, 198_502)
  return c
