"""Ways to retrieve side by side, as a table."""

from collections.abc import Mapping

from gr_jax.evaluation import metrics

COLUMNS = {
  metrics.RECALL_10: "recall@10",
  metrics.NDCG_10: "NDCG@10",
  "exact_top_10": "exact top 10 found",
  "exact_list": "exact list found",
  "users_per_s": "users/s",
  "ms_one_user": "ms, one user",
}
# Row -> column -> value; a value that does not exist is absent.
Rows = Mapping[str, Mapping[str, float]]


def title(num_users: int, device: str) -> str:
  """Says what the table is of."""
  return f"{num_users:,} test users, history removed, {device}"


def cells(values: Mapping[str, float]) -> list[str]:
  """Returns a row's cells below `COLUMNS`, empty where there is no value."""
  return [_cell(values, column) for column in COLUMNS]


def markdown(rows: Rows, heading: str) -> str:
  """Returns the table."""
  lines = [
    f"### {heading}\n",
    "| | " + " | ".join(COLUMNS.values()) + " |",
    "| --- |" + " ---: |" * len(COLUMNS),
  ]
  for name, values in rows.items():
    lines.append(f"| {name} | " + " | ".join(cells(values)) + " |")
  return "\n".join(lines) + "\n"


def _cell(values: Mapping[str, float], column: str) -> str:
  if column not in values:
    return ""
  if column == "users_per_s":
    return f"{values[column]:,.0f}"
  return f"{values[column]:.2f}" if "ms" in column else f"{values[column]:.4f}"
