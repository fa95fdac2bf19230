r"""Amazon 2014 Office Products, the smallest real set: as `configs/beauty.py`.

  python -m launch.pipeline --config=configs/office.py:cpu \
    --config.data.path=DATA/office --workdir=runs/office
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  c = common.amazon2014(arg)
  c.data.expected_counts = (4_905, 2_420, 53_258)
  return c
