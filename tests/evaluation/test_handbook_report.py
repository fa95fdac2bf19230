"""The handbook's tables say what the records say."""

import numpy as np

from gr_jax.evaluation import handbook_report, metrics, report


def _record(grid, name, values, *, collision_rate=0.1):
  by_metric = {m: list(values) for m in metrics.RANKING_METRICS}
  return {
    "grid": grid,
    "name": name,
    "metrics": dict.fromkeys(report.FORMS, by_metric),
    "baselines": {
      "popularity": dict.fromkeys(
        report.FORMS, dict.fromkeys(report.DECIDING, 0.0114)
      )
    },
    "codebook": {"collision_rate": collision_rate, "utilization": 1.0},
    "facts": {"users_per_second": 1234.0},
    "seconds": 90.0,
  }


def _records():
  return [
    _record("tokenizer", "residual_kmeans", [0.060, 0.062, 0.061]),
    _record("tokenizer", "rq_vae", [0.050, 0.052, 0.051], collision_rate=0.2),
    _record("shape", "3x256", [0.060, 0.062, 0.061]),
    _record("shape", "5x256", [0.055, 0.057, 0.056], collision_rate=0.15),
    {"grid": "shape", "name": "2x256", "error": "ValueError: too few"},
  ]


def test_grid_table():
  header, rows = handbook_report.grid_table(_records(), "shape")
  assert len({len(row) for row in [header, *rows]}) == 1
  assert [row[0] for row in rows[:3]] == ["3x256", "5x256", "2x256"]
  # Half of Student's interval of three values with deviation .001.
  assert rows[0][1] == "0.0610 ± 0.0025"
  assert rows[0][5:] == ["3", "10.0%", "1,234", "1.5"]
  assert rows[2][1] == "ValueError: too few"
  assert rows[3][1] == "0.0114"


def test_sasrec_stands_below_every_grid():
  records = [*_records(), _record("backbone", "sasrec", [0.07, 0.07, 0.07])]
  _, rows = handbook_report.grid_table(records, "shape")
  assert [row[0] for row in rows][3:] == ["sasrec", "*popularity*"]
  _, rows = handbook_report.grid_table(records, "backbone")
  assert [row[0] for row in rows] == ["sasrec", "*popularity*"]


def test_claims_find_their_cells():
  _, rows = handbook_report.claims_table({"beauty": _records()})
  by_claim = {row[0]: row for row in rows}
  held = by_claim["Residual k-means beats RQ-VAE."]
  assert held[2] == "0.0639, 0.0593"
  assert held[3].startswith("0.0610, 0.0510, +0.0")
  assert held[-1] == "held"
  assert by_claim["3 levels beat 5."][-1] == "held"
  assert by_claim["LSH codes beat random codes."][-1] == "not measured"


def test_correlation_counts_equal_codes_once():
  measures, target = handbook_report.correlation_points(_records())
  assert measures["collision_rate"] == [0.1, 0.2, 0.15]
  np.testing.assert_allclose(target, [0.061, 0.051, 0.056])
  _, rows = handbook_report.correlation_table({"beauty": _records()})
  by_measure = dict(rows)
  assert by_measure["collision_rate"] == "-1.00 (0.000, 3)"
  assert by_measure["utilization"] == "–"


def test_both_forms_hold_every_cell():
  data_sets = {"beauty": _records(), "toys": _records()[:2]}
  text = handbook_report.markdown(data_sets)
  page = handbook_report.page(data_sets)
  for found in ("Published claims", "beauty: shape", "toys: tokenizer"):
    assert found in text
    assert found in page
  assert "<img" in page
  assert page.count("<table>") == 5
