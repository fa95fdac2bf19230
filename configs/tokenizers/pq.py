r"""Product quantization: 4 sub-spaces of 64 codes, since 3 divide few widths.

  python -m launch.pipeline --workdir=runs/pq \
    --config=configs/tokenizers/pq.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="pq",
    codebook_sizes=(64, 64, 64, 64),
  )
  return c
