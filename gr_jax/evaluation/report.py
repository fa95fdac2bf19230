"""Metrics of the generator and the baselines as tables; runs no model.

A report is nested as row -> form -> population -> metric -> value. The forms
say what the ranking leaves out: "nothing_removed" is the published protocol,
"history_removed" leaves out the items that the user already had. Populations
are "all" test users and, where interactions carry times, those whose test
item fell on a later day than the item before it ("later_day") or on the same.
A trained row is the mean of its replicas, whose own rows ("generator/0" ...)
stand beside it; what all of them are as one is a row called "ensemble" in place
of "generator".
"""

import itertools
from collections.abc import Mapping, Sequence

import rich.console
import rich.table

from gr_jax.evaluation import metrics, shared_ids
from gr_jax.evaluation.baselines import BASELINES

NOTHING_REMOVED, HISTORY_REMOVED = "nothing_removed", "history_removed"
FORMS = (NOTHING_REMOVED, HISTORY_REMOVED)
ALL, LATER_DAY, SAME_DAY = "all", "later_day", "same_day"
GENERATOR = "generator"
# In the order of `reranking`: the same lists, those of the counters' fusion
# (a baseline), and both joined.
RERANKED = "generator_reranked"
COUNTERS = "counters_reranked"
JOINT = "generator_and_counters_reranked"
# The generator's list as a fourth ranking of the counters' fusion.
FUSED = "generator_and_fusion"
ENSEMBLE = "ensemble"
# What a verdict is about.
DECIDING = (metrics.RECALL_10, metrics.NDCG_10)
# Prefix of half a metric's 95 % interval: over replicas, or over users where
# one network was trained.
INTERVAL = "interval/"
_SHOWN = (*metrics.RANKING_METRICS,)
_SHOWN_IN_TERMINAL = ("recall@5", *DECIDING, "recall@20")

Rows = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]


def label(row: str) -> str:
  """Returns how a row is called in tables."""
  names = {
    COUNTERS: "rank fusion, reranked",
    RERANKED: "generator, reranked",
    JOINT: "generator + fusion, reranked",
    FUSED: "generator + rank fusion",
  }
  names |= {ensemble_of(r): ensemble_of(name) for r, name in names.items()}
  if row in names:
    return names[row]
  return BASELINES[row].label if row in BASELINES else row


def over_replicas(
  name: str,
  replicas: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]],
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
  """Returns the row of a trained model, and one of each of several replicas.

  Args:
    name: The row's.
    replicas: Each one's form -> population -> metric -> value, with
      intervals over users.
  """
  if len(replicas) == 1:
    return {name: replicas[0]}
  mean = {}
  for form, populations in replicas[0].items():
    mean[form] = {}
    for population in populations:
      runs = [replica[form][population] for replica in replicas]
      found = metrics.over_seeds(runs)
      mean[form][population] = {k: v.mean for k, v in found.items()} | {
        key: found[key.removeprefix(INTERVAL)].half_width
        for key in found
        if key.startswith(INTERVAL)
      }
  return {name: mean} | {f"{name}/{r}": row for r, row in enumerate(replicas)}


def ensemble_of(row: str) -> str:
  """Returns the name of the ensemble's row beside a trained row."""
  return row.replace(GENERATOR, ENSEMBLE, 1)


def of_networks(
  name: str,
  networks: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]],
  ensemble: bool,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
  """Returns the rows of `over_replicas` and, if there is one, the ensemble's.

  Args:
    name: The trained row's.
    networks: As `replicas` there, and after them the ensemble.
    ensemble: Whether there is one.
  """
  if not ensemble:
    return over_replicas(name, networks)
  *replicas, joined = networks
  return over_replicas(name, replicas) | {ensemble_of(name): joined}


def spread(rows: Rows) -> str:
  """Says what the generator's figures are a mean of, and what ± covers."""
  count = sum(row.startswith(f"{GENERATOR}/") for row in rows)
  if not count:
    return "One trained network; ± is the 95 % interval over users."
  text = (
    f"Mean of {count} networks trained from different seeds on the same "
    "semantic IDs; ± is Student's t 95 % interval over them."
  )
  if ENSEMBLE in rows:
    text += (
      " The ensemble is all of them at once, by the mean of their "
      "probabilities; its ± is over users."
    )
  return text


def _baselines(rows: Rows) -> dict[str, Mapping]:
  return {row: rows[row] for row in (*BASELINES, COUNTERS) if row in rows}


def verdicts(rows: Rows, form: str, population: str = ALL) -> list[str]:
  """Says, metric by metric, which baselines the generator does not beat.

  And, where lists are reranked, which they do not, alone and joined; and
  likewise the ensemble.

  Args:
    rows: The report.
    form: One of `FORMS`.
    population: One of the report's populations.

  Returns:
    One line a row and deciding metric, with its 95 % interval.
  """
  lines = []
  judged = GENERATOR, RERANKED, JOINT
  judged += tuple(map(ensemble_of, judged))
  for row, metric in itertools.product(judged, DECIDING):
    if row not in rows:
      continue
    values = rows[row][form][population]
    own = values[metric]
    said = f"{metric} {own:.4f} ± {values[INTERVAL + metric]:.4f}"
    if row != GENERATOR:
      said = f"{label(row)}, {said}"
    ahead = {
      name: other[form][population][metric]
      for name, other in _baselines(rows).items()
      if other[form][population][metric] >= own
    }
    if ahead:
      names = ", ".join(f"{label(r)} ({v:.4f})" for r, v in ahead.items())
      lines.append(f"{said}: NOT above {names}.")
    else:
      lines.append(f"{said}: above every baseline.")
  return lines


def markdown(rows: Rows) -> str:
  """Returns the report as Markdown tables with verdicts."""
  parts = [spread(rows), ""]
  for form in FORMS:
    for population in rows[GENERATOR][form]:
      parts.append(f"### {_title(form, population)}\n")
      parts.append("| | " + " | ".join(_SHOWN) + " |")
      parts.append("| --- |" + " ---: |" * len(_SHOWN))
      for name, values in _lines(rows, form, population):
        cells = " | ".join(f"{values[m]:.4f}" for m in _SHOWN)
        parts.append(f"| {name} | {cells} |")
      parts += ["", *(f"- {v}" for v in verdicts(rows, form, population)), ""]
  return "\n".join(parts)


def show(rows: Rows, console: rich.console.Console) -> None:
  """Prints the main tables; what the generator fails to beat stands out."""
  tables = [(form, ALL) for form in FORMS]
  if LATER_DAY in rows[GENERATOR][NOTHING_REMOVED]:
    tables.append((NOTHING_REMOVED, LATER_DAY))
  for form, population in tables:
    table = rich.table.Table(
      title=_title(form, population), title_justify="left"
    )
    table.add_column("", no_wrap=True)
    for metric in _SHOWN_IN_TERMINAL:
      table.add_column(metric, justify="right", no_wrap=True)
    own = rows[GENERATOR][form][population]
    for name, values in _lines(rows, form, population):
      is_own = name.startswith((GENERATOR, ENSEMBLE))
      cells = []
      for metric in _SHOWN_IN_TERMINAL:
        cell = f"{values[metric]:.4f}"
        ahead = not is_own and values[metric] >= own[metric]
        cells.append(f"[red]{cell} ![/red]" if ahead else cell)
      table.add_row(name, *cells, style="bold" if name == GENERATOR else None)
    console.print(table)
    for line in verdicts(rows, form, population):
      console.print(("[red]" if "NOT" in line else "[green]") + line)
    console.print()
  console.print(spread(rows))
  invalid = rows[GENERATOR][NOTHING_REMOVED][ALL][metrics.INVALID_RATE]
  console.print(f"Invalid semantic IDs: {invalid:.2%} of those returned.")


def _title(form: str, population: str) -> str:
  what = {
    NOTHING_REMOVED: "nothing removed from the ranking",
    HISTORY_REMOVED: "the user's history removed",
  }[form]
  who = {
    ALL: "All test users",
    LATER_DAY: "Test item on a later day than the one before",
    SAME_DAY: "Test item on the same day as the one before",
  }[population]
  return f"{who}, {what}"


def _lines(
  rows: Rows, form: str, population: str
) -> list[tuple[str, Mapping[str, float]]]:
  """Baselines first, then the generator, items before semantic IDs."""
  lines = [
    (label(row), values[form][population])
    for row, values in _baselines(rows).items()
  ]
  own = rows[GENERATOR][form][population]
  lines.append((GENERATOR, own))
  for start, name in (
    (shared_ids.SAMPLED, "one draw"),
    (metrics.SID_LEVEL, "SID level"),
  ):
    part = {k[len(start) :]: v for k, v in own.items() if k.startswith(start)}
    if part:
      lines.append((f"{GENERATOR}, {name}", part))
  trained = FUSED, RERANKED, JOINT
  trained += tuple(map(ensemble_of, (GENERATOR, *trained)))
  for row in trained:
    if row in rows:
      lines.append((label(row), rows[row][form][population]))
  return lines
