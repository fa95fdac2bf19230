"""Tables and verdicts."""

import io

import pytest
import rich.console

from gr_jax.evaluation import metrics, report


def _row(value):
  names = metrics.RANKING_METRICS
  own = dict.fromkeys(names, value)
  own |= {metrics.SID_LEVEL + name: value + 0.1 for name in names}
  own |= {report.INTERVAL + name: 0.02 for name in report.DECIDING}
  own[metrics.INVALID_RATE] = 0.25
  return {form: {report.ALL: own} for form in report.FORMS}


@pytest.fixture
def rows():
  rows = {"generator": _row(0.5), "markov": _row(0.5), "popularity": _row(0.1)}
  rows["markov"][report.NOTHING_REMOVED][report.ALL]["ndcg@10"] = 0.25
  return rows


def test_a_verdict_names_what_is_not_beaten_a_tie_included(rows):
  recall, ndcg = report.verdicts(rows, report.NOTHING_REMOVED)
  assert recall == (
    "recall@10 0.5000 ± 0.0200: NOT above Markov (last item) (0.5000)."
  )
  assert ndcg == "ndcg@10 0.5000 ± 0.0200: above every baseline."


def test_tables_show_both_forms_and_label_the_sid_level(rows):
  text = report.markdown(rows)
  assert text.count("| generator | 0.5000 |") == 2
  assert text.count("| generator, SID level | 0.6000 |") == 2
  assert "nothing removed from the ranking" in text
  assert "the user's history removed" in text
  assert "later day" not in text  # the data has no times


def test_the_terminal_marks_what_is_ahead_and_fits_80_columns(rows):
  stream = io.StringIO()
  report.show(rows, rich.console.Console(file=stream, width=80))
  text = stream.getvalue()
  assert "0.5000 !" in text
  assert "0.1000 !" not in text
  assert "25.00%" in text
  assert "…" not in text


def test_replicas_by_hand():
  replicas = [_row(value) for value in (0.1, 0.2, 0.3)]
  rows = report.over_replicas("generator", replicas)
  assert list(rows) == ["generator", *(f"generator/{r}" for r in range(3))]
  own = rows["generator"][report.HISTORY_REMOVED][report.ALL]
  assert own["ndcg@10"] == pytest.approx(0.2)
  # t(2, .975) = 4.3027 times the standard error 0.1 / sqrt(3).
  want = 4.302653 * 0.1 / 3**0.5
  assert own[report.INTERVAL + "ndcg@10"] == pytest.approx(want, rel=1e-5)
  assert rows["generator/1"] is replicas[1]
  rows["markov"] = _row(0.15)
  assert "Mean of 3 networks" in report.markdown(rows)
  assert "generator/1" not in report.markdown(rows)
  assert all(
    "above every baseline" in line
    for line in report.verdicts(rows, report.NOTHING_REMOVED)
  )
  # One replica is its own mean, its interval over users.
  assert report.over_replicas("generator", replicas[:1]) == {
    "generator": replicas[0]
  }
  assert "over users" in report.spread({"generator": replicas[0]})


def test_an_ensemble_is_a_row_of_its_own():
  networks = [_row(value) for value in (0.1, 0.2, 0.3)]
  rows = report.of_networks("generator", networks, ensemble=True)
  assert list(rows) == [
    "generator", "generator/0", "generator/1", "ensemble",
  ]  # fmt: skip
  own = rows["generator"][report.NOTHING_REMOVED][report.ALL]
  assert own["ndcg@10"] == pytest.approx(0.15)
  assert rows["ensemble"] is networks[2]
  rows |= report.of_networks(report.RERANKED, networks, ensemble=True)
  rows |= report.of_networks(report.FUSED, networks, ensemble=True)
  rows["markov"] = _row(0.25)
  text = report.markdown(rows)
  assert "Mean of 2 networks" in text
  assert "The ensemble is all of them at once" in text
  for label in ("", ", reranked", " + rank fusion"):
    assert f"| ensemble{label} | 0.3000" in text
  assert "- ensemble, reranked, ndcg@10 0.3000 ± 0.0200: above every" in text
  assert "- ndcg@10 0.1500 ± " in text
  stream = io.StringIO()
  report.show(rows, rich.console.Console(file=stream, width=80))
  assert "0.2500 !" in stream.getvalue()
  assert "0.3000 !" not in stream.getvalue()  # ahead, but no baseline
  without = report.of_networks("generator", networks, ensemble=False)
  assert without == report.over_replicas("generator", networks)
