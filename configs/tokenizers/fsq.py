r"""Finite scalar quantization: 3 tokens of 8 x 8 x 4 values.

  python -m launch.pipeline --workdir=runs/fsq \
    --config=configs/tokenizers/fsq.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="fsq",
    num_tokens=3,
    levels=(8, 8, 4),
    hidden_dims=(512, 256),
    num_epochs=500,
    batch_size=1024,
    learning_rate=1e-3,
  )
  return c
