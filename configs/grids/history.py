"""User tokens, how histories become examples, and how long they are."""

from ml_collections import config_dict

from configs import grids

CELLS = (
  {
    f"{count}_user_tokens": {"task": {"num_user_buckets": count}}
    for count in (0, 2_000, 4_000, 8_000)
  }
  | {
    name: {"task": {"augmentation": name}}
    for name in ("prefixes", "subsequences", "none")
  }
  | {
    f"{count}_items": {"task": {"max_history": count}}
    for count in (20, 5, 10, 50)
  }
)


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, history=CELLS)
