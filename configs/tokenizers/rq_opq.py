r"""RQ-OPQ: 2 residual levels of 256 codes, then 2 sub-spaces of 16.

  python -m launch.pipeline --workdir=runs/rq_opq \
    --config=configs/tokenizers/rq_opq.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="rq_opq",
    residual_sizes=(256, 256),
    subspace_sizes=(16, 16),
  )
  return c
