r"""Amazon 2014 Toys and Games: as `configs/beauty.py`.

  python -m launch.pipeline --config=configs/toys.py \
    --config.data.path=DATA/toys --workdir=runs/toys
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  c = common.amazon2014(arg)
  c.data.expected_counts = (19_412, 11_924, 167_597)
  return c
