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
    "codebook": {
      "collision rate": collision_rate,
      "independent coding rate": 1 - collision_rate,
      "utilization": 1.0,
      "entropy": 5.5,
      "relative MSE": 0.25,
    },
    "facts": {"users_per_second": 1234.0, "num_parameters": 5_000},
    "settings": {
      "model": {"name": "encoder_decoder"},
      "training": {"num_steps": 2_000, "batch_size": 64, "replicas": 3},
      "tokenizer": {"name": grid + name},
    },
    "device": "cpu",
    "seconds": 90.0,
    "alone": grid != "tokenizer",
  }


def _records():
  return [
    _record("tokenizer", "residual_kmeans", [0.060, 0.062, 0.061]),
    _record("tokenizer", "rq_vae", [0.050, 0.052, 0.051], collision_rate=0.2),
    _record("shape", "3x256", [0.060, 0.062, 0.061]),
    _record("shape", "5x256", [0.055, 0.057, 0.056], collision_rate=0.15),
    {"grid": "shape", "name": "2x256", "error": "ValueError: too few"},
    {"grid": "shape", "name": "2x128", "error": "not run"},
    {"grid": "baselines", "name": "sasrec", "error": "not run"},
  ]


def test_grid_table():
  header, rows = handbook_report.grid_table(_records(), "shape")
  assert len({len(row) for row in [header, *rows]}) == 1
  assert [row[0] for row in rows[:2]] == ["3x256", "5x256"]
  # Half of Student's interval of three values with deviation .001.
  assert rows[0][1] == "0.0610 ± 0.0025"
  assert rows[0][5:] == ["3", "10.0%", "5.50", "0.250", "1,234", "1.5"]
  assert rows[2][:2] == ["sasrec", "not run"]
  assert rows[3][1] == "0.0114"


def test_speed_stands_where_the_device_was_not_shared():
  records = _records()
  header, rows = handbook_report.grid_table(records, "tokenizer")
  assert "decoding, users/s" not in header
  assert {len(row) for row in rows} == {len(header)}
  records[1]["alone"] = True
  header, rows = handbook_report.grid_table(records, "tokenizer")
  speeds = [
    dict(zip(header, row, strict=True))["decoding, users/s"] for row in rows
  ]
  assert speeds[:2] == ["", "1,234"]


def test_what_was_run():
  header, rows = handbook_report.run_table({"beauty": _records()})
  assert dict(zip(header, rows[0], strict=True)) == {
    "data set": "beauty",
    "cells": "4 of 7",
    "failed": "1",
    "not run": "2",
    "model": "encoder_decoder",
    "parameters": "5,000",
    "steps x batch": "2,000 x 64",
    "replicas": "3",
    "device": "cpu",
    "minutes": "6",
  }


def test_cells_not_run_are_named_and_need_no_row():
  text = handbook_report.markdown({"beauty": _records()})
  assert "\n\nFailed: 2x256: too few. Not run: 2x128.\n\n|" in text
  assert "| 2x128" not in text
  assert "### beauty: baselines\n\nNot run: sasrec.\n" in text


def test_a_grid_that_repeats_others_needs_no_table():
  base = _record("tokenizer", "residual_kmeans", [0.06, 0.06])
  again = {**base, "grid": "embedding", "name": "given"}
  records = [base, again, {**again, "name": "other", "error": "not run"}]
  del records[2]["metrics"]
  text = handbook_report.markdown({"beauty": records})
  assert text.endswith(
    "### beauty: embedding\n\nRun in grids above: given (tokenizer: "
    "residual_kmeans). Not run: other.\n"
  )
  other = {**_record("embedding", "other", [0.05, 0.05]), "seconds": 1.0}
  text = handbook_report.markdown({"beauty": [base, again, other]})
  assert "### beauty: embedding\n\n| cell" in text
  assert "| given" in text


def test_collision_rates_stand_where_codes_are_compared():
  # Policies and levels left out change them after the codes were measured.
  records = [_record("hourglass", "middle_dropped", [0.05, 0.06])]
  header, rows = handbook_report.grid_table(records, "hourglass")
  assert "collision rate" not in header
  assert len(rows[0]) == len(header)


def test_retrieval_has_a_table_of_its_own():
  record = {
    "grid": "shape",
    "name": "beside",
    "seconds": 1.0,
    "alone": False,
    "settings": _records()[0]["settings"],
    "facts": {"num_parameters": 5_000},
    "device": "cpu",
    "retrieval": {
      "num_users": 1_000,
      "device": "cpu",
      "rows": {"semantic IDs, exact": {"recall@10": 0.5}},
    },
  }
  data_sets = {"beauty": [*_records(), record]}
  text = handbook_report.markdown(data_sets)
  assert "### beauty: shape, beside" in text
  assert "shared with other cells" in text
  assert "| semantic IDs, exact | 0.5000 |" in text
  header, rows = handbook_report.grid_table(data_sets["beauty"], "shape")
  assert "beside" not in [row[0] for row in rows]
  assert "1,000 test users" in handbook_report.page(data_sets)


def test_sasrec_stands_below_every_grid():
  sasrec = _record("baselines", "sasrec", [0.07, 0.07, 0.07])
  records = [*_records()[:-1], sasrec]
  _, rows = handbook_report.grid_table(records, "shape")
  assert [row[0] for row in rows][2:] == ["sasrec", "*popularity*"]
  # It has no codes to speak of.
  assert rows[2][5:] == ["3", "", "", "", "1,234", "1.5"]
  _, rows = handbook_report.grid_table(records, "baselines")
  assert [row[0] for row in rows] == ["sasrec", "*popularity*"]


def test_claims_find_their_cells():
  _, rows = handbook_report.claims_table({"beauty": _records()})
  by_claim = {row[0]: row for row in rows}
  held = by_claim["Residual k-means beats RQ-VAE."]
  assert held[1] == "held"
  assert held[2] == "0.0639, 0.0593"
  assert held[3].startswith("0.0610, 0.0510, +0.0")
  assert by_claim["3 levels beat 5."][1] == "held"
  assert by_claim["LSH codes beat random codes."][1] == "not measured"


def test_cells_of_the_same_networks_are_compared_one_by_one():
  cells = [
    _record("decoding", name, [0.04, 0.05, 0.06])
    for name in ("constrained_beam_50", "free_beam_50")
  ]
  claim = "Constrained and free beam search are level."

  def verdict():
    _, rows = handbook_report.claims_table({"beauty": cells})
    return {row[0]: row for row in rows}[claim][1]

  assert verdict() == "not decided"  # other tokenizers
  cells[1]["settings"] = {**cells[0]["settings"], "decoding": {}}
  assert verdict() == "held"


def test_correlation_counts_equal_codes_once():
  measures, target = handbook_report.correlation_points(_records())
  assert measures["collision rate"] == [0.1, 0.2, 0.15]
  np.testing.assert_allclose(target, [0.061, 0.051, 0.056])
  _, rows = handbook_report.correlation_table({"beauty": _records()})
  by_measure = dict(rows)
  assert by_measure["collision rate"] == "-1.00 (0.333, 3)"
  assert "independent coding rate" not in by_measure  # says the same
  assert "utilization" not in by_measure  # all the same


def test_what_predicts_is_said_in_words():
  text = handbook_report.predictors({"beauty": _records()})
  # Three of the four do not vary; three points prove nothing.
  assert text == ("On beauty, with p below .05 / 1 (Bonferroni): none of them.")
  rising = [
    _record("shape", str(n), [0.01 * n], collision_rate=1 - n / 10)
    for n in range(1, 6)
  ]
  assert handbook_report.predictors({"beauty": rising}) == (
    "On beauty, with p below .05 / 1 (Bonferroni): collision rate (rho -1.00)."
  )
  noise = [
    _record("shape", str(n), [v], collision_rate=n / 10)
    for n, v in enumerate((0.05, 0.07, 0.06, 0.055))
  ]
  assert "none of them" in handbook_report.predictors({"beauty": noise})
  assert handbook_report.predictors({"beauty": []}) == ""


def test_both_forms_hold_every_cell():
  data_sets = {"beauty": _records(), "toys": _records()[:2]}
  text = handbook_report.markdown(data_sets)
  page = handbook_report.page(data_sets)
  for found in ("Published claims", "beauty: shape", "toys: tokenizer"):
    assert found in text
    assert found in page
  assert "<img" in page
  assert page.count("<table>") == 6
