r"""Prints a user's best next items with title, semantic ID and score.

  python -m launch.recommend --workdir=runs/quickstart --user=user00017
  python -m launch.recommend --workdir=runs/quickstart \
    --history=item00003,item00141 --format=jsonl
  python -m launch.recommend --workdir=runs/quickstart --user=user00017 \
    --allow=@in_stock.txt --deny=item00003
"""

from absl import flags

from gr_jax import stages
from launch import app

_USER = flags.DEFINE_string("user", "", "A user id of the data set.")
_HISTORY = flags.DEFINE_list("history", [], "Item ids instead, oldest first.")
_TOP_K = flags.DEFINE_integer("top_k", 10, "Items to return.")
_KEEP = flags.DEFINE_bool("keep_history", False, "May history come again?")
_ALLOW = flags.DEFINE_list(
  "allow", [], "Item ids that alone may come; @FILE: one id a line."
)
_DENY = flags.DEFINE_list("deny", [], "Item ids that must not come; or @FILE.")
_ALL_ITEMS = flags.DEFINE_bool(
  "all_items", False, "All items of a shared semantic ID, not one at random?"
)
_MIN_NEW = flags.DEFINE_integer(
  "min_new", 0, "At least so many appended items on the list."
)
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "jsonl"], "Output.")


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Recommends to the user that the flags name."""
  request = stages.Request(
    user=_USER.value,
    history=tuple(_HISTORY.value),
    top_k=_TOP_K.value,
    keep_history=_KEEP.value,
    allow=tuple(_ALLOW.value),
    deny=tuple(_DENY.value),
    all_items=_ALL_ITEMS.value,
    min_new=_MIN_NEW.value,
    as_json=_FORMAT.value == "jsonl",
  )
  stages.recommend(config, workdir, request)


if __name__ == "__main__":
  app.run(main)
