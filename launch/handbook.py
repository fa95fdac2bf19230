r"""Runs a grid of cells on one data set and reports what holds.

  python -m launch.handbook --config=configs/handbook.py:short \
    --config.data.path=DATA/beauty --workdir=runs/handbook_beauty
  python -m launch.handbook ... --only='tokenizer/*,collisions/none' \
    --minutes=9 --at_once=3

The same command goes on where it stopped. With --beside=runs/handbook_toys
(a handbook on another data set) the report covers both.
"""

from absl import flags

from gr_jax import stages
from gr_jax.stages import handbook
from launch import app

_ONLY = flags.DEFINE_list(
  "only", [], "Cells to run as GRID/NAME with * and ?, by commas; '' for all."
)
_MINUTES = flags.DEFINE_float(
  "minutes", 0.0, "No cell is started later than that; 0: no limit."
)
_AT_ONCE = flags.DEFINE_integer(
  "at_once", 1, "Cells side by side: one trains, others compile or are scored."
)
_REPORT_ONLY = flags.DEFINE_bool(
  "report_only", False, "Write the report of the results there are."
)
_BESIDE = flags.DEFINE_multi_string(
  "beside", [], "Workdir of another data set's handbook, reported with this."
)
_DOCS = flags.DEFINE_string(
  "docs", "", "Markdown file that takes the tables, between two marks."
)


def main(config: handbook.HandbookConfig, workdir: stages.Workdir) -> None:
  """Runs what is not done yet, and writes the report."""
  options = handbook.HandbookOptions(
    only=tuple(_ONLY.value),
    minutes=_MINUTES.value,
    at_once=_AT_ONCE.value,
    report_only=_REPORT_ONLY.value,
    beside=tuple(_BESIDE.value),
    docs=_DOCS.value,
  )
  handbook.run(config, workdir, options)


if __name__ == "__main__":
  app.run(main, settings=handbook.HandbookConfig)
