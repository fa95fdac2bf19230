"""The codebook report: one self-contained HTML page a person can read.

Knows no files: `page` returns text. Numbers come from `codebook_measures`,
pictures from `codebook_figures`.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr_jax.core.checks import InputError
from gr_jax.evaluation import codebook_figures as figures
from gr_jax.evaluation import codebook_tree
from gr_jax.evaluation.codebook_measures import CodebookRun

_MAX_MAP_ITEMS = 10_000
_NUM_MAP_LABELS = 14

# Only of runs whose networks can do without codes: left out if none can.
_WITHOUT_CODES = (
  "relative MSE without codes",
  ("reconstruction", "unquantized"),
  ".3f",
  0,
)
# How runs are compared: title, where the value lies, format, which is better.
_COLUMNS = (
  ("levels", ("codebook_sizes",), "sizes", 0),
  ("fit, s", ("seconds",), ".1f", -1),
  ("MSE", ("reconstruction", "mse"), ".4g", -1),
  ("relative MSE", ("reconstruction", "relative_mse"), ".3f", -1),
  _WITHOUT_CODES,
  ("cosine", ("reconstruction", "cosine"), ".3f", 1),
  ("utilization", ("levels", "utilization"), "mean", 0),
  ("entropy, nats", ("levels", "entropy"), "each", 0),
  ("Gini", ("levels", "gini"), "each", 0),
  ("top share", ("levels", "top_share"), "each", 0),
  ("collision rate", ("ids", "collision_rate"), ".2%", -1),
  ("ICR", ("ids", "independent_coding_rate"), ".2%", 1),
  ("largest bucket", ("ids", "largest_bucket"), ",d", -1),
  (
    "hit rate@10, embedding",
    ("hit_rate", "embedding", "hit_rate@10"),
    ".4f",
    0,
  ),
  ("hit rate@10, codes", ("hit_rate", "decoded", "hit_rate@10"), ".4f", 1),
)

_CSS = """
:root { --line: #dadce0; --soft: #5f6368; --bad: #b3261e; --good: #137333; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; margin: 0 auto;
  max-width: 1060px; padding: 24px 20px 80px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 44px 0 8px; padding-top: 12px;
  border-top: 1px solid var(--line); }
p { max-width: 78ch; margin: 6px 0 12px; }
.soft { color: var(--soft); }
.cards { display: grid; gap: 10px; margin: 18px 0;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; }
.card b { display: block; font-size: 21px; font-weight: 600; }
.card span { color: var(--soft); font-size: 13px; }
.alarm { color: var(--bad); margin: 4px 0; }
.pair { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pair > div { flex: 1 1 400px; min-width: 0; }
img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line);
  text-align: right; }
th:first-child, td:first-child { text-align: left; }
td:first-child, th:first-child { position: sticky; left: 0;
  background: white; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom;
  white-space: normal; }
td.best { color: var(--good); font-weight: 600; }
nav a { margin-right: 14px; }
a { color: #0b57d0; }
details { margin-left: 18px; }
.tree > details { margin-left: 0; }
summary { cursor: pointer; padding: 1px 0; }
summary:hover { background: #f1f3f4; }
code { font: 13px ui-monospace, monospace; color: #0b57d0; }
summary em { font-style: normal; color: var(--soft); }
ul { list-style: none; margin: 0 0 6px 18px; padding: 0; }
li { padding: 1px 0; overflow-wrap: anywhere; }
li small { color: var(--soft); }
"""


def page(
  run: CodebookRun, measures: Mapping[str, Any], *, projection: str = "pca"
) -> str:
  """Returns the report of one run as an HTML page without outside parts.

  Args:
    run: The run.
    measures: From `codebook_measures.measure`.
    projection: One of `codebook_figures.PROJECTIONS`.

  Raises:
    InputError: Unknown projection.
  """
  sections = [
    ("Codes", "usage", _usage_section(run, measures)),
    ("Hourglass", "hourglass", _hourglass_section(measures)),
    ("Collisions", "collisions", _collision_section(measures)),
    ("Reconstruction", "reconstruction", _quality_section(measures)),
    ("Map", "map", _map_section(run, projection)),
    ("Semantic IDs", "tree", codebook_tree.section(run)),
  ]
  if measures["curves"]:
    sections.insert(4, ("Fit", "fit", _fit_section(measures)))
  links = " ".join(
    f'<a href="#{key}">{title}</a>' for title, key, _ in sections
  )
  sizes = " × ".join(map(str, run.codebook_sizes))
  parts = [
    f"<h1>{html.escape(run.name)}</h1>",
    f'<p class="soft">{run.catalog.num_items:,} items, {sizes} codes, '
    f"embeddings of {run.vectors.shape[1]} dimensions</p>",
    f"<nav>{links}</nav>",
    _cards(measures),
    *(f'<p class="alarm">⚠ {html.escape(a)}</p>' for a in measures["alarms"]),
    *(f'<h2 id="{key}">{title}</h2>\n{body}' for title, key, body in sections),
  ]
  return document(run.name, "\n".join(parts))


def comparison_page(runs: Sequence[Mapping[str, Any]]) -> str:
  """Returns several runs' measures side by side as an HTML page.

  Raises:
    InputError: No run.
  """
  table = comparison(runs)
  columns = [title for title, *_ in _columns(runs)]
  best = _best(runs)
  rows = []
  for index, (name, cells) in enumerate(table):
    marked = "".join(
      f'<td class="best">{cell}</td>'
      if index in best[column]
      else f"<td>{cell}</td>"
      for column, cell in enumerate(cells)
    )
    rows.append(f"<tr><td>{html.escape(name)}</td>{marked}</tr>")
  header = "".join(f"<th>{column}</th>" for column in columns)
  errors = {run["name"]: run["reconstruction"]["by_level"] for run in runs}
  body = [
    "<h1>Tokenizers compared</h1>",
    '<p class="soft">Best values in green. Usage, entropy and balance have no '
    "best value: they are alarms, not targets; the recommendation metric "
    "decides.</p>",
    f'<div class="scroll"><table><thead><tr><th>run</th>{header}</tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>",
    '<h2>Reconstruction by level</h2><div class="pair"><div>'
    + _image(figures.reconstruction(errors), "Relative error by level")
    + "</div>",
  ]
  rated = {
    run["name"]: run["hit_rate"]["decoded"] for run in runs if run["hit_rate"]
  }
  if rated:
    with_embedding = next(run for run in runs if run["hit_rate"])["hit_rate"]
    rates = {figures.EMBEDDING: with_embedding["embedding"], **rated}
    body.append(
      f"<div>{_image(figures.hit_rates(rates), 'Hit rates of all runs')}</div>"
    )
  body.append("</div>")
  return document("Tokenizers compared", "\n".join(body), wide=True)


def comparison(
  runs: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[str]]]:
  """Returns a row of formatted cells for every run.

  Raises:
    InputError: No run.
  """
  if not runs:
    raise InputError("No run to compare; name at least one workdir.")
  columns = _columns(runs)
  return [
    (run["name"], [_cell(run, path, form) for _, path, form, _ in columns])
    for run in runs
  ]


def comparison_markdown(runs: Sequence[Mapping[str, Any]]) -> str:
  """Returns the comparison as a Markdown table.

  Raises:
    InputError: No run.
  """
  rows, columns = comparison(runs), _columns(runs)
  lines = [
    "| run | " + " | ".join(title for title, *_ in columns) + " |",
    "| --- |" + " ---: |" * len(columns),
  ]
  for name, cells in rows:
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def document(title: str, body: str, *, wide: bool = False) -> str:
  """Returns a self-contained HTML page around a body."""
  style = _CSS.replace("1060px", "1640px") if wide else _CSS
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{style}</style></head>"
    f"<body>\n{body}\n</body></html>\n"
  )


def _image(uri: str, text: str) -> str:
  return f'<img src="{uri}" alt="{html.escape(text)}">'


def _cards(measures: Mapping[str, Any]) -> str:
  ids, quality = measures["ids"], measures["reconstruction"]
  cards = [
    (f"{1 - quality['relative_mse']:.1%}", "of the variance kept"),
    (f"{ids['collision_rate']:.2%}", "of items share their codes"),
    (f"{ids['largest_bucket']:,}", "items on the fullest codes"),
    (
      f"{min(level['utilization'] for level in measures['levels']):.0%}",
      "of codes used on the poorest level",
    ),
  ]
  rates = measures["hit_rate"]
  if rates and "hit_rate@10" in rates["decoded"]:
    kept = rates["decoded"]["hit_rate@10"]
    before = rates["embedding"]["hit_rate@10"]
    cards.append(
      (f"{kept:.3f}", f"hit rate@10 of codes; embedding {before:.3f}")
    )
  if measures["seconds"] is not None:
    cards.append((f"{measures['seconds']:,.1f} s", "to fit"))
  return (
    '<div class="cards">'
    + "".join(
      f'<div class="card"><b>{value}</b><span>{text}</span></div>'
      for value, text in cards
    )
    + "</div>"
  )


def _usage_section(run: CodebookRun, measures: Mapping[str, Any]) -> str:
  columns = (
    ("codes", "num_codes", ",d"),
    ("used", "utilization", ".1%"),
    ("dead", "dead_codes", ",d"),
    ("entropy, nats", "entropy", ".3f"),
    ("perplexity", "perplexity", ".1f"),
    ("Gini", "gini", ".3f"),
    ("std of counts", "counts_std", ".1f"),
    ("top code", "top_share", ".2%"),
    ("distinct prefixes", "distinct_paths", ",d"),
    ("branching", "branching", ".2f"),
  )
  rows = "".join(
    f"<tr><td>{index}</td>"
    + "".join(f"<td>{level[key]:{form}}</td>" for _, key, form in columns)
    + "</tr>"
    for index, level in enumerate(measures["levels"])
  )
  header = "".join(f"<th>{title}</th>" for title, *_ in columns)
  return (
    '<div class="scroll"><table><thead><tr><th>level</th>'
    f"{header}</tr></thead><tbody>{rows}</tbody></table></div>"
    "<p class='soft'>Branching is how many codes a prefix really chooses "
    "from: exp of the entropy given the levels before.</p>"
    + _image(figures.usage(run.codes, run.codebook_sizes), "Items per code")
    + _image(figures.lorenz(run.codes, run.codebook_sizes), "Lorenz curves")
  )


def _hourglass_section(measures: Mapping[str, Any]) -> str:
  return (
    "<p>A middle level that is less even than its neighbors (lower entropy, "
    "higher Gini, a larger top code) is the hourglass: many items pass "
    "through few codes.</p>"
    + _image(figures.hourglass(measures["levels"]), "Evenness by level")
  )


def _collision_section(measures: Mapping[str, Any]) -> str:
  ids, resolved = measures["ids"], measures["resolved"]
  text = (
    f"<p>{ids['distinct_ids']:,} distinct code tuples for "
    f"{ids['num_items']:,} items; {ids['independent_coding_rate']:.1%} of "
    "items stand alone on theirs.</p>"
  )
  if resolved is not None:
    sizes = " × ".join(map(str, resolved["codebook_sizes"]))
    length = f"{resolved['longest']} codes"
    if resolved["shortest"] != resolved["longest"]:
      length = f"{resolved['shortest']} to {length}"
    text += (
      f"<p>The semantic IDs made from them: {sizes}, {length} long, "
      f"{resolved['distinct_ids']:,} distinct"
      + (", shared on purpose.</p>" if resolved["shares_ids"] else ".</p>")
    )
  return text + _image(figures.buckets(measures["buckets"]), "Collisions")


def _quality_section(measures: Mapping[str, Any]) -> str:
  quality, rates = measures["reconstruction"], measures["hit_rate"]
  ceiling = quality["unquantized"]
  without = (
    f" Without codes the networks leave {ceiling:.3f} of the variance."
    if ceiling is not None
    else ""
  )
  left = (
    f"<div><p>What the levels leave unexplained, over "
    f"{quality['num_rows']:,} items; later codes are averaged out. All "
    f"levels: MSE {quality['mse']:.4g}, cosine {quality['cosine']:.3f}."
    f"{without}</p>"
    + _image(
      figures.reconstruction({measures["name"]: quality["by_level"]}),
      "Relative error by level",
    )
    + "</div>"
  )
  if rates is None:
    return f'<div class="pair">{left}</div>'
  sources = {
    key: rates[key] for key in (figures.EMBEDDING, "decoded", figures.CHANCE)
  }
  right = (
    "<div><p>How often what a user chose next is among the k nearest "
    "neighbors of what they had chosen, by embeddings and by what codes "
    f"decode to ({rates['num_pairs']:,} pairs).</p>"
    + _image(figures.hit_rates(sources), "Hit rates")
    + "</div>"
  )
  return f'<div class="pair">{left}{right}</div>'


def _fit_section(measures: Mapping[str, Any]) -> str:
  return _image(figures.curves(measures["curves"]), "Objectives of the fit")


def _map_section(run: CodebookRun, projection: str) -> str:
  rows = np.arange(run.codes.shape[0])
  if rows.size > _MAX_MAP_ITEMS:
    # Evenly spaced: no random numbers, the same page every time.
    rows = rows[np.linspace(0, rows.size - 1, _MAX_MAP_ITEMS).astype(int)]
  first = run.codes[:, 0]
  largest = np.argsort(-np.bincount(first), kind="stable")[:_NUM_MAP_LABELS]
  labels = {}
  for code in largest.tolist():
    members = np.flatnonzero(first == code)
    text = codebook_tree.what(run, members).split(" > ")[-1].split(" (")[0]
    labels[code] = f"{code}: {text[:28]}"
  return (
    f"<p>{rows.size:,} items by the {projection.upper()} of their embeddings, "
    "one color a first code; the largest codes by what most of their items "
    "are.</p>"
    + _image(
      figures.item_map(
        run.vectors[rows], first[rows], labels, projection=projection
      ),
      "Map of the items",
    )
  )


def _value(run: Mapping[str, Any], path: Sequence[str]) -> Any:
  """Follows keys; through a list, collects the key of every element."""
  found: Any = run
  for key in path:
    if found is None:
      return None
    if isinstance(found, list):
      found = [entry[key] for entry in found]
    else:
      found = found.get(key)
  return found


def _columns(runs: Sequence[Mapping[str, Any]]) -> list[Any]:
  some_without = any(_value(run, _WITHOUT_CODES[1]) is not None for run in runs)
  return [c for c in _COLUMNS if c is not _WITHOUT_CODES or some_without]


def _cell(run: Mapping[str, Any], path: Sequence[str], form: str) -> str:
  value = _value(run, path)
  if value is None:
    return "–"
  if form == "sizes":
    return "×".join(map(str, value))
  if form == "mean":
    return f"{float(np.mean(value)):.1%}"
  if form == "each":
    return " / ".join(f"{v:.2f}" for v in value)
  return f"{value:{form}}"


def _best(runs: Sequence[Mapping[str, Any]]) -> list[set[int]]:
  """Returns, column by column, which rows hold the best value."""
  best = []
  for _, path, _, better in _columns(runs):
    values = [_value(run, path) for run in runs]
    known = [v for v in values if isinstance(v, (int, float))]
    if not better or len(known) < 2:
      best.append(set())
      continue
    top = max(known) if better > 0 else min(known)
    best.append({i for i, v in enumerate(values) if v == top})
  return best
