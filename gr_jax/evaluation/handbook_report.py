"""The handbook's results as tables, verdicts and correlations; reads no files.

A record is one cell's result on one data set:

  grid, name     which cell
  error          why there is no result; the other keys are then missing
  settings       section -> key -> value
  device         what it ran on
  seconds        how long it took
  alone          whether no other cell ran beside it; else times say little
  facts          number of parameters, users decoded a second and the like
  metrics        form -> metric -> a value a replica, over all test users
  baselines      row -> form -> metric -> value
  codebook       measure -> number, of the tokenizer and its codes
  retrieval      in place of the last three: ways to retrieve side by side
"""

import base64
import collections
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from gr_jax.evaluation import (
  claims,
  codebook_report,
  metrics,
  report,
  retrieval_report,
)

Record = Mapping[str, Any]
DataSets = Mapping[str, Sequence[Record]]
_METRIC = metrics.RECALL_10  # what publications report
_TARGET = metrics.NDCG_10  # what codebook measures are correlated with
_FORM = report.NOTHING_REMOVED
_COLUMNS = tuple(
  (form, metric) for form in report.FORMS for metric in report.DECIDING
)
_FORM_TITLES = {
  report.NOTHING_REMOVED: "nothing removed",
  report.HISTORY_REMOVED: "history removed",
}
# Grids whose cells differ in their codes alone, and can be correlated.
_CODE_GRIDS = ("tokenizer", "shape", "balance", "codebook", "embedding")

# One minus the collision rate, so no measure of its own.
_COMPLEMENT = "independent coding rate"

# A trained baseline, shown below every grid.
_YARDSTICK = ("baselines", "sasrec")
NOT_RUN = "not run"
_PREDICTS = "What predicts the recommendation"

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header, rows


def run_table(data_sets: DataSets) -> Table:
  """Returns what was run of each data set, and with what settings."""
  header = ["data set", "cells", "failed", "not run", "model", "parameters"]
  header += ["steps x batch", "replicas", "device", "minutes"]
  rows = []
  for name, records in data_sets.items():
    errors = [r["error"] for r in records if "error" in r]
    absent = errors.count(NOT_RUN)
    counts = [len(records) - len(errors), len(errors) - absent, absent]
    distinct = {_identity(r): r for r in records if "error" not in r}
    done = list(distinct.values())
    rows.append(
      [
        name,
        f"{counts[0]} of {len(records)}",
        *map(str, counts[1:]),
        _most(r["settings"]["model"]["name"] for r in done),
        _most(f"{r['facts']['num_parameters']:,}" for r in done),
        _most(
          "{num_steps:,} x {batch_size:,}".format(**r["settings"]["training"])
          for r in done
        ),
        _most(str(r["settings"]["training"]["replicas"]) for r in done),
        _most(r["device"] for r in done),
        f"{sum(r['seconds'] for r in done) / 60:.0f}",
      ]
    )
  return header, rows


def _identity(record: Record) -> tuple[Any, ...]:
  """Equal for the records that several grids make of one run."""
  return record["seconds"], str(record["settings"])


def _most(values: Iterable[str]) -> str:
  """Returns the most frequent value, and how many others there are."""
  counts = collections.Counter(values).most_common()
  if not counts:
    return ""
  others = len(counts) - 1
  more = f" (and {others} other{'s' * (others > 1)})" if others else ""
  return counts[0][0] + more


def grid_table(records: Sequence[Record], grid: str) -> Table:
  """Returns a grid's cells; SASRec and the counted baselines below them.

  Cells without a result have no row, but SASRec.
  """
  of_codes = grid in _CODE_GRIDS
  header = [
    "cell",
    *(f"{metric}, {_FORM_TITLES[form]}" for form, metric in _COLUMNS),
    "replicas",
    *(("collision rate", "entropy, nats", "relative MSE") if of_codes else ()),
    "decoding, users/s",
    "minutes",
  ]
  rows = [
    _row(record, of_codes)
    for record in records
    if record["grid"] == grid and "metrics" in record
  ]
  for record in records:
    if (record["grid"], record["name"]) == _YARDSTICK and grid != _YARDSTICK[0]:
      if "metrics" in record:
        row = _row(record, of_codes)
        row[6 : len(row) - 2] = [""] * (len(row) - 8)  # of no codes
      else:
        row = [record["name"], _reason(record), *[""] * (len(header) - 2)]
      rows.append(row)
  measured = [r for r in records if "baselines" in r]
  measured.sort(key=lambda record: record["grid"] != grid)
  if measured:
    for name, forms in measured[0]["baselines"].items():
      cells = [f"{forms[form][metric]:.4f}" for form, metric in _COLUMNS]
      rest = [""] * (len(header) - 1 - len(cells))
      rows.append([f"*{report.label(name)}*", *cells, *rest])
  if not any(row[-2] for row in rows):  # no cell had the device alone
    header, *rows = ([*row[:-2], row[-1]] for row in (header, *rows))
  return header, rows


def _row(record: Record, of_codes: bool) -> list[str]:
  estimates = [
    metrics.student_interval(np.array(record["metrics"][form][metric]))
    for form, metric in _COLUMNS
  ]
  facts, codes = record["facts"], record["codebook"]
  measures = (
    f"{codes['collision rate']:.1%}",
    f"{codes['entropy']:.2f}",
    f"{codes['relative MSE']:.3f}",
  )
  return [
    record["name"],
    *map(_estimate, estimates),
    str(estimates[0].count),
    *(measures if of_codes else ()),
    f"{facts['users_per_second']:,.0f}" if record["alone"] else "",
    f"{record['seconds'] / 60:.1f}",
  ]


def _reason(record: Record) -> str:
  """Returns why there is no result, without the exception's name."""
  text = record["error"]
  return text if text == NOT_RUN else text.partition(": ")[2] or text


def claims_table(data_sets: DataSets) -> Table:
  """Returns every claim with our figures and a verdict."""
  header = ["claim", "verdict", "published"]
  header += [f"{name}: first, second, difference" for name in data_sets]
  header += ["source"]
  rows = []
  for claim in claims.CLAIMS:
    found = {}
    for name, records in data_sets.items():
      first, second = (
        _find(records, cell) for cell in (claim.first, claim.second)
      )
      if first is not None and second is not None:
        found[name] = claims.difference(
          _replicas(first),
          _replicas(second),
          paired=_generator(first) == _generator(second),
        )
    published = "–"
    if claim.published:
      published = "{:.4f}, {:.4f}".format(*claim.published)
    rows.append(
      [
        claim.text,
        claims.verdict(claim, found),
        published,
        *(_difference(found.get(name)) for name in data_sets),
        claim.source,
      ]
    )
  return header, rows


def correlation_points(
  records: Sequence[Record],
) -> tuple[dict[str, list[float]], list[float]]:
  """Returns codebook measures of the cells that differ in codes, and NDCG@10.

  A cell that several grids name counts once.
  """
  measures: dict[str, list[float]] = {}
  target, seen = [], set()
  for record in records:
    if record["grid"] not in _CODE_GRIDS or "metrics" not in record:
      continue
    values = tuple(sorted(record["codebook"].items()))
    if values in seen:
      continue
    seen.add(values)
    for name, value in values:
      if name != _COMPLEMENT:
        measures.setdefault(name, []).append(value)
    target.append(float(np.mean(record["metrics"][_FORM][_TARGET])))
  return measures, target


def correlation_table(data_sets: DataSets) -> Table:
  """Returns each codebook measure's rank correlation with NDCG@10.

  Measures that no data set's cells differ in have no row.
  """
  header = ["measure", *(f"{name}: rho (p, cells)" for name in data_sets)]
  points = {n: correlation_points(records) for n, records in data_sets.items()}
  names = dict.fromkeys(n for measures, _ in points.values() for n in measures)
  rows = []
  for name in names:
    cells = []
    for measures, target in points.values():
      rho, p = claims.rank_correlation(measures.get(name, []), target)
      chance = "<0.001" if p < 0.0005 else f"{p:.3f}"
      text = f"{rho:+.2f} ({chance}, {len(target)})"
      cells.append("–" if np.isnan(rho) else text)
    if any(cell != "–" for cell in cells):
      rows.append([name, *cells])
  return header, rows


def predictors(data_sets: DataSets) -> str:
  """Says which measures' correlations are more than chance among so many."""
  sentences = []
  for name, records in data_sets.items():
    measures, target = correlation_points(records)
    found = {m: claims.rank_correlation(v, target) for m, v in measures.items()}
    found = {m: pair for m, pair in found.items() if not np.isnan(pair[0])}
    if not found:
      continue
    limit = 0.05 / len(found)
    passed = sorted(
      (p, f"{measure} (rho {rho:+.2f})")
      for measure, (rho, p) in found.items()
      if p < limit
    )
    what = ", ".join(text for _, text in passed) or "none of them"
    sentences.append(
      f"On {name}, with p below .05 / {len(found)} (Bonferroni): {what}."
    )
  return " ".join(sentences)


def markdown(data_sets: DataSets) -> str:
  """Returns what was run, claims, correlations and every grid as Markdown."""
  parts = []
  for title, text, (header, rows) in _sections(data_sets):
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + " --- |" * len(header))
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join(lines) + "\n" if rows else ""
    parts.append("\n\n".join(p for p in (f"### {title}", text, table) if p))
  return "\n".join(part.rstrip() + "\n" for part in parts)


def page(data_sets: DataSets) -> str:
  """Returns the same as a self-contained HTML page, with plots."""
  parts = ["<h1>Handbook</h1>"]
  for title, text, (header, rows) in _sections(data_sets):
    parts.append(f"<h2>{html.escape(title)}</h2>")
    if text:
      parts.append(f"<p>{html.escape(text)}</p>")
    if rows:
      head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
      body = "".join(
        "<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
      )
      parts.append(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
      )
    if title == _PREDICTS:
      parts += [
        f'<img src="{uri}" alt="Codebook measures against NDCG@10, {name}">'
        for name, uri in _plots(data_sets)
      ]
  return codebook_report.document("Handbook", "\n".join(parts), wide=True)


def _sections(data_sets: DataSets) -> list[tuple[str, str, Table]]:
  sections = [
    (
      "What was run",
      "Cells with a result; a run that several grids name counts in each, its "
      "minutes once. In the tables of grids figures are means ± half of "
      "Student's 95 % interval over replicas, which share a cell's semantic "
      "IDs; counted baselines stand in italics. Minutes are from a cell's "
      "start to its end: stages that it shares with an earlier cell took none, "
      "cells side by side share the device. Decoding's speed is given for "
      "cells that had it alone. A grid's table needs a run that no grid before "
      "it has.",
      run_table(data_sets),
    ),
    (
      "Published claims",
      f"{_METRIC}, nothing removed from the ranking: means over replicas and "
      "the 95 % interval of their difference (Welch; replica by replica where "
      "only the decoding differs). Held: the interval lies on the claimed side "
      "of 0; of claims that two are level, within "
      f"{100 * claims.LEVEL_MARGIN:.0f} % of the second. Did not hold: it lies "
      "on the other side, or outside. Depends: data sets disagree. Not "
      "decided: anything else. Of twenty intervals one misses by chance.",
      claims_table(data_sets),
    ),
    (
      _PREDICTS,
      f"Spearman's rank correlation of codebook measures with {_TARGET} over "
      f"the cells that differ in their codes. {predictors(data_sets)}".strip(),
      correlation_table(data_sets),
    ),
  ]
  for name, records in data_sets.items():
    for grid in dict.fromkeys(record["grid"] for record in records):
      sections += _grid_sections(name, records, grid)
  return sections


def _grid_sections(
  data_set: str, records: Sequence[Record], grid: str
) -> list[tuple[str, str, Table]]:
  own = [r for r in records if r["grid"] == grid]
  before: dict[tuple[Any, ...], Record] = {}
  for record in records[: records.index(own[0])]:
    if "metrics" in record:
      before.setdefault(_identity(record), record)
  done = [r for r in own if "metrics" in r]
  repeats = bool(done) and all(_identity(r) in before for r in done)
  absent = [r["name"] for r in own if r.get("error") == NOT_RUN]
  text = "".join(
    f"Failed: {r['name']}: {_reason(r).rstrip('.')}. "
    for r in own
    if r.get("error", NOT_RUN) != NOT_RUN
  )
  if repeats:
    text += "Run in grids above: "
    text += ", ".join(_as_before(r, before[_identity(r)]) for r in done) + ". "
  text += f"Not run: {', '.join(absent)}." if absent else ""
  title = f"{data_set}: {grid}"
  table = grid_table(records, grid) if done and not repeats else None
  sections = [(title, text.strip(), table or ((), ()))]
  for record in own:
    if "retrieval" in record:
      found = record["retrieval"]
      header = ["", *retrieval_report.COLUMNS.values()]
      rows = [
        [row, *retrieval_report.cells(values)]
        for row, values in found["rows"].items()
      ]
      heading = retrieval_report.title(found["num_users"], found["device"])
      text = f"{heading}. One generator, its best replica on validation."
      if not record["alone"]:
        text += " Times are of a device shared with other cells."
      sections.append((f"{title}, {record['name']}", text, (header, rows)))
  return sections


def _as_before(record: Record, earlier: Record) -> str:
  return f"{record['name']} ({earlier['grid']}: {earlier['name']})"


def _find(records: Iterable[Record], cell: claims.Cell) -> Record | None:
  for record in records:
    if (record["grid"], record["name"]) == cell and "metrics" in record:
      return record
  return None


def _replicas(record: Record) -> np.ndarray:
  return np.array(record["metrics"][_FORM][_METRIC], np.float64)


def _generator(record: Record) -> dict[str, Any]:
  """Returns the settings that decide a record's networks."""
  return {k: v for k, v in record["settings"].items() if k != "decoding"}


def _estimate(estimate: metrics.Estimate) -> str:
  if np.isnan(estimate.low):
    return f"{estimate.mean:.4f}"
  return f"{estimate.mean:.4f} ± {estimate.half_width:.4f}"


def _difference(found: claims.Difference | None) -> str:
  if found is None:
    return claims.NOT_MEASURED
  text = f"{found.first:.4f}, {found.second:.4f}"
  if np.isnan(found.low):
    return f"{text}, one replica"
  return f"{text}, {found.low:+.4f} to {found.high:+.4f}"


def _escape(cell: str) -> str:
  if cell.startswith("*") and cell.endswith("*"):
    return f"<em>{html.escape(cell[1:-1])}</em>"
  return html.escape(cell)


def _plots(data_sets: DataSets) -> list[tuple[str, str]]:
  """Returns small multiples of every measure against the metric, as URIs."""
  images = []
  for name, records in data_sets.items():
    measures, target = correlation_points(records)
    varied = {k: v for k, v in measures.items() if np.ptp(v) > 0}
    if len(target) < 3 or not varied:
      continue
    columns = 4
    count = -(-len(varied) // columns)
    figure = matplotlib.figure.Figure(
      figsize=(3.2 * columns, 2.6 * count), layout="constrained"
    )
    axes = figure.subplots(count, columns, squeeze=False).ravel()
    for axis, (measure, values) in zip(axes, varied.items(), strict=False):
      rho, _ = claims.rank_correlation(values, target)
      axis.scatter(values, target, s=14)
      axis.set_title(f"{measure} (rho {rho:+.2f})", fontsize=9)
      axis.tick_params(labelsize=7)
      axis.locator_params(nbins=5)
    for axis in axes[len(varied) :]:
      axis.set_visible(False)
    figure.supylabel(f"{_TARGET}, {name}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    images.append((name, f"data:image/svg+xml;base64,{data}"))
  return images
