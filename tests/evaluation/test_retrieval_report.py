"""The table of retrieval says what the rows say."""

from gr_jax.evaluation import retrieval_report


def test_a_value_that_is_not_there_leaves_its_cell_empty():
  rows = {"one": {"recall@10": 0.5, "users_per_s": 1234.5, "ms_one_user": 2.0}}
  assert (
    "| one | 0.5000 |  |  |  | 1,234 | 2.00 |"
    in retrieval_report.markdown(rows, "title")
  )
