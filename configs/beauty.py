r"""Amazon 2014 Beauty: residual k-means IDs and TIGER's 4 + 4 layers.

  python -m launch.pipeline --config=configs/beauty.py \
    --config.data.path=DATA/beauty --workdir=runs/beauty

DATA/beauty is a folder as the README describes, with embeddings of the items'
texts beside them (`embeddings.minilm.npy` or any other name).
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  common.no_argument(arg)
  c = common.base()
  c.data.expected_counts = (22_363, 12_101, 198_502)
  c.embedding = dict(name="precomputed")
  c.training.batch_size = 1_024
  c.training.num_steps = 8_000
  c.training.eval_every_steps = 500
  c.training.patience = 6
  return c
