r"""Compares beam search over semantic IDs with exact and embedding retrieval.

  python -m launch.compare_retrieval --workdir=runs/quickstart
  python -m launch.compare_retrieval --workdir=runs/beauty --num_users=2000 \
    --beam_widths=10,20,50,100,200

Quality and time in one table, on one device; HNSW rows need faiss
(pip install faiss-cpu). docs/decoding.md explains the columns.
"""

from absl import flags

from gr_jax import stages
from launch import app

_NUM_USERS = flags.DEFINE_integer("num_users", 512, "Test users; 0 for all.")
_WIDTHS = flags.DEFINE_list(
  "beam_widths", ["10", "20", "50", "100"], "Widths of beam search."
)
_EXACT = flags.DEFINE_bool("exact", True, "Rank the whole catalog, too?")
_EXACT_USERS = flags.DEFINE_integer("exact_users", 4, "Users at once in that.")
_RECENCY = flags.DEFINE_float(
  "recency", 0.7, "Weight of an item relative to the next newer one."
)


def main(config: stages.RunConfig, workdir: stages.Workdir) -> None:
  """Prints the table."""
  if not all(width.isdigit() for width in _WIDTHS.value):
    raise stages.InputError(
      f"--beam_widths={','.join(_WIDTHS.value)} must be whole numbers."
    )
  options = stages.RetrievalOptions(
    num_users=_NUM_USERS.value,
    beam_widths=tuple(int(width) for width in _WIDTHS.value),
    exact=_EXACT.value,
    exact_users=_EXACT_USERS.value,
    recency=_RECENCY.value,
  )
  stages.compare_retrieval(config, workdir, options)


if __name__ == "__main__":
  app.run(main)
