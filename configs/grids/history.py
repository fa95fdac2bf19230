"""User tokens, how histories become examples, and how long they are."""

from ml_collections import config_dict

from configs import grids

_TASKS = {
  "0_user_tokens": {"num_user_buckets": 0},
  "prefixes": {"augmentation": "prefixes"},
  "20_items": {"max_history": 20},
  "none": {"augmentation": "none"},
  "2000_user_tokens": {"num_user_buckets": 2_000},
  "5_items": {"max_history": 5},
  "50_items": {"max_history": 50},
  "subsequences": {"augmentation": "subsequences"},
  "8000_user_tokens": {"num_user_buckets": 8_000},
  "10_items": {"max_history": 10},
  "4000_user_tokens": {"num_user_buckets": 4_000},
}
CELLS = {name: {"task": change} for name, change in _TASKS.items()}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, history=CELLS)
