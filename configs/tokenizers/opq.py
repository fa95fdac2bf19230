r"""Optimized product quantization: 4 sub-spaces of 64 codes.

  python -m launch.pipeline --workdir=runs/opq \
    --config=configs/tokenizers/opq.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="opq",
    codebook_sizes=(64, 64, 64, 64),
    num_iters=50,
  )
  return c
