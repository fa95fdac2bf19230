"""User tokens, how histories become examples, and how long they are."""

from ml_collections import config_dict

from configs import grids

# Those of published claims come first.
_OF_TOKENS = {
  "0_user_tokens": {"num_user_buckets": 0},
  "prefixes": {"augmentation": "prefixes"},
  "none": {"augmentation": "none"},
  "2000_user_tokens": {"num_user_buckets": 2_000},
}
_LATER = {
  "subsequences": {"augmentation": "subsequences"},
  "8000_user_tokens": {"num_user_buckets": 8_000},
  "4000_user_tokens": {"num_user_buckets": 4_000},
}


def cells(arg: str) -> grids.Cells:
  """Returns the cells; `arg` as of `grids.base`."""
  lengths = {
    f"{count}_items": {"task": {"max_history": count}}
    for count in (20, 5, 50, 10)
  }
  first, later = (
    {name: grids.of_tokens(arg, task=task) for name, task in tasks.items()}
    for tasks in (_OF_TOKENS, _LATER)
  )
  if arg in ("short", "cpu"):  # whose users are one sequence each
    lengths["cut_sequences"] = {"task": {"history_cut_rate": 0.3}}
  lengths["neighbor_targets"] = {"task": {"neighbor_share": 0.25}}
  return first | lengths | later


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, history=cells(arg))
