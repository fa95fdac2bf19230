r"""SimHash: 3 tokens of 8 bits.

  python -m launch.pipeline --workdir=runs/lsh \
    --config=configs/tokenizers/lsh.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="lsh",
    num_tokens=3,
    num_bits=8,
  )
  return c
