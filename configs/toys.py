r"""Amazon 2014 Toys and Games: as `configs/beauty.py`.

  python -m launch.pipeline --config=configs/toys.py \
    --config.data.path=DATA/toys --workdir=runs/toys
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  c = common.amazon2014(arg)
  if arg in ("best", "cpu_hour"):
    c.task.update(neighbor_share=0.25, history_cut_rate=0.4)
  c.data.expected_counts = (19_412, 11_924, 167_597)
  return c
