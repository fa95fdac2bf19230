r"""Amazon 2014 Toys and Games: residual k-means IDs and TIGER's 4 + 4 layers.

  python -m launch.pipeline --config=configs/toys.py \
    --config.data.path=DATA/toys --workdir=runs/toys

DATA/toys is a folder as the README describes, with embeddings of the items'
texts beside them (`embeddings.minilm.npy` or any other name).
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  common.no_argument(arg)
  c = common.base()
  c.data.expected_counts = (19_412, 11_924, 167_597)
  c.embedding = dict(name="precomputed")
  c.training.batch_size = 1_024
  c.training.num_steps = 8_000
  c.training.eval_every_steps = 500
  c.training.patience = 6
  return c
