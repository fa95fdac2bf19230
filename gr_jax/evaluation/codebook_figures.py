"""Figures of the codebook report as data URIs; no files, no global state."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from gr_jax.core import checks
from gr_jax.tokenizers import codebook_stats

PROJECTIONS = ("pca", "tsne")
EMBEDDING, CHANCE = "embedding", "chance"  # sources of hit rates
# Okabe and Ito's palette, readable with color blindness; levels or runs.
_COLORS = (
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442",
  "#000000",
)  # fmt: skip
_GRAY = "#9aa0a6"
_SLATE = "#5f6368"
_STYLE = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 10,
  "axes.titlelocation": "left",
  "legend.frameon": False,
  "svg.hashsalt": "gr_jax",  # same figure, same bytes
}


def usage(codes: Int[np.ndarray, "N L"], codebook_sizes: Sequence[int]) -> str:
  """Draws items per code of every level, codes by falling use."""
  with mpl.rc_context(_STYLE):
    figure, panels = _panels(len(codebook_sizes))
    for level, (axes, size) in enumerate(
      zip(panels, codebook_sizes, strict=True)
    ):
      counts = codebook_stats.code_counts(codes[:, level], size)
      ordered = np.sort(counts)[::-1]
      axes.fill_between(
        np.arange(size + 1),
        np.append(ordered, ordered[-1]),
        step="post",
        color=_color(level),
        linewidth=0,
      )
      axes.axhline(
        codes.shape[0] / size, color="black", linewidth=0.8, linestyle="--"
      )
      dead = codebook_stats.dead_codes(counts)
      axes.set_title(f"level {level}: {size - dead} of {size} used")
      axes.set_xlabel("codes, most used first")
      axes.set_xlim(0, size)
      axes.set_ylim(0)
    panels[0].set_ylabel("items (dashes: equal use)")
    return _svg(figure)


def lorenz(codes: Int[np.ndarray, "N L"], codebook_sizes: Sequence[int]) -> str:
  """Draws the Lorenz curve of every level: 1 - 2 x area is the Gini."""
  with mpl.rc_context(_STYLE):
    figure, (axes,) = _panels(1)
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle="--")
    for level, size in enumerate(codebook_sizes):
      counts = codebook_stats.code_counts(codes[:, level], size)
      curve = np.append(0.0, codebook_stats.lorenz_curve(counts))
      axes.plot(
        np.linspace(0, 1, size + 1),
        curve,
        color=_color(level),
        label=f"level {level}: Gini {codebook_stats.gini(counts):.2f}",
      )
    axes.set(xlabel="share of codes, least used first", xlim=(0, 1), ylim=0)
    axes.set_ylabel("share of items")
    axes.legend(loc="upper left")
    return _svg(figure)


def hourglass(levels: Sequence[Mapping[str, float | int]]) -> str:
  """Draws entropy, Gini and top share by level; a waist is an hourglass."""
  rows = (
    ("entropy / log K", [_evenness(level) for level in levels]),
    ("Gini", [level["gini"] for level in levels]),
    ("share of the top code", [level["top_share"] for level in levels]),
  )
  with mpl.rc_context(_STYLE):
    figure, panels = _panels(len(rows))
    for axes, (title, values) in zip(panels, rows, strict=True):
      place = np.arange(len(levels))
      colors = [_color(level) for level in range(len(levels))]
      bars = axes.barh(place, values, color=colors, height=0.7)
      axes.bar_label(bars, fmt="%.3g", padding=3)
      axes.set_title(title)
      axes.set_yticks(place, [f"level {level}" for level in place])
      axes.invert_yaxis()
      axes.set_xlim(0, 1.15 * max([*values, 1e-9]))
    return _svg(figure)


def buckets(sizes: Mapping[int, int]) -> str:
  """Draws how many items stand on IDs of 1, 2, ... items; log counts."""
  most = 12
  labels = [str(size) for size in range(1, most)] + [f"{most}+"]
  items = np.zeros(most)
  for size, num_ids in sizes.items():
    items[min(int(size), most) - 1] += int(size) * num_ids
  last = int(np.flatnonzero(items)[-1]) + 1
  with mpl.rc_context(_STYLE):
    figure, (axes,) = _panels(1)
    colors = [_COLORS[2], *[_COLORS[5]] * (most - 1)][:last]
    bars = axes.bar(labels[:last], np.maximum(items[:last], 0.5), color=colors)
    axes.bar_label(bars, [f"{n:,.0f}" for n in items[:last]], padding=2)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 3 * items.max())
    axes.set(xlabel="items on the same codes", ylabel="items")
    return _svg(figure)


def reconstruction(errors: Mapping[str, Sequence[float]]) -> str:
  """Draws the relative error after each level, a line a run."""
  with mpl.rc_context(_STYLE):
    figure, (axes,) = _panels(1)
    for index, (name, values) in enumerate(errors.items()):
      axes.plot(values, marker="o", color=_color(index), label=name)
      if len(errors) == 1:
        for level, value in enumerate(values):
          axes.annotate(
            f"{value:.2f}", (level, value), (4, 4), textcoords="offset points"
          )
    longest = max(len(values) for values in errors.values())
    axes.set_xticks(range(longest))
    axes.set(xlabel="levels read", ylabel="relative squared error")
    axes.set_ylim(0)
    if len(errors) > 1:
      axes.legend()
    return _svg(figure)


def hit_rates(rates: Mapping[str, Mapping[str, float]]) -> str:
  """Draws hit rates side by side: a group a cutoff, a bar a source."""
  sources = list(rates)
  cutoffs = list(rates[sources[0]])
  width = 0.8 / len(sources)
  grays = {EMBEDDING: _SLATE, CHANCE: _GRAY}
  with mpl.rc_context(_STYLE):
    figure, (axes,) = _panels(1)
    for index, source in enumerate(sources):
      place = np.arange(len(cutoffs)) + (index - (len(sources) - 1) / 2) * width
      # What runs are measured against is gray; runs keep their colors.
      color = grays.get(source) or _color(index - (sources[0] in grays))
      values = [rates[source][cutoff] for cutoff in cutoffs]
      bars = axes.bar(place, values, width, color=color, label=source)
      if len(sources) <= 3:
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=7)
    axes.set_xticks(
      range(len(cutoffs)), [c.replace("hit_rate", "hit rate ") for c in cutoffs]
    )
    axes.set_ylabel("share of pairs")
    axes.legend(loc="upper left")
    return _svg(figure)


def curves(values: Mapping[str, Sequence[float]]) -> str:
  """Draws what the fit minimized, a panel a curve."""
  with mpl.rc_context(_STYLE):
    figure, panels = _panels(len(values))
    for index, (axes, (name, curve)) in enumerate(
      zip(panels, values.items(), strict=True)
    ):
      axes.plot(curve, color=_color(index))
      axes.set_title(name)
      axes.set_xlabel("iteration")
    return _svg(figure)


def item_map(
  vectors: Float[np.ndarray, "n D"],
  first_codes: Int[np.ndarray, "n"],
  labels: Mapping[int, str],
  *,
  projection: str = "pca",
  seed: int = 0,
) -> str:
  """Draws items in two dimensions, colored by their first code.

  Codes take hues by the angle of their mean in the map, so that neighbors
  look alike.

  Args:
    vectors: One row an item.
    first_codes: Its first code.
    labels: Text for some of the codes, written at their means.
    projection: "pca", or "tsne" of the first 50 principal components.
    seed: Of t-SNE.

  Raises:
    InputError: Unknown projection.
  """
  checks.check_known(projection, PROJECTIONS, "projection")
  points = _project(vectors, projection, seed)
  codes, inverse = np.unique(first_codes, return_inverse=True)
  count = np.bincount(inverse)
  means = np.stack(
    [np.bincount(inverse, points[:, axis]) / count for axis in (0, 1)], 1
  )
  middle = points.mean(axis=0, keepdims=True)
  angle = np.arctan2(*(means - middle).T[::-1])
  hue = (np.argsort(np.argsort(angle)) / codes.size)[inverse]
  # Alternating lightness tells apart codes whose hues nearly agree.
  light = np.where(inverse % 2, 0.9, 0.7)
  colors = mpl.colors.hsv_to_rgb(
    np.stack([hue, np.full_like(hue, 0.75), light], axis=1)
  )
  with mpl.rc_context(_STYLE):
    figure = Figure(figsize=(10.4, 6.8), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(40_000 / points.shape[0], 3, 24))
    axes.scatter(*points.T, s=size, c=colors, linewidths=0, alpha=0.7)
    written = np.full((1, 2), np.inf)
    for code, label in labels.items():
      mean = means[codes == code]  # [1, 2], or empty
      apart = np.abs(mean - written) / np.ptp(points, axis=0, keepdims=True)
      # A label that would cover an earlier one is left out.
      if mean.size and ((apart[:, 0] > 0.13) | (apart[:, 1] > 0.03)).all():
        written = np.concatenate([written, mean])
        axes.annotate(
          label,
          mean[0],
          fontsize=7,
          ha="center",
          bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1},
        )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
  return _uri("image/png", buffer.getvalue())


def _project(
  vectors: Float[np.ndarray, "n D"], projection: str, seed: int
) -> Float[np.ndarray, "n 2"]:
  centered = (vectors - vectors.mean(axis=0, keepdims=True)).astype(np.float32)
  rank = min(*centered.shape, 50 if projection == "tsne" else 2)
  # The covariance is D x D, however many items there are.
  _, basis = np.linalg.eigh(centered.T @ centered)
  points = centered @ basis[:, ::-1][:, :rank]
  if projection == "tsne":
    from sklearn import manifold  # seconds to import, rarely asked for

    points = manifold.TSNE(
      init="pca", random_state=seed, perplexity=min(30, points.shape[0] / 4)
    ).fit_transform(points)
  if points.shape[1] < 2:  # one dimension: a line
    points = np.concatenate([points, np.zeros_like(points)], axis=1)
  return points


def _evenness(level: Mapping[str, float | int]) -> float:
  most = np.log(level["num_codes"])
  return float(level["entropy"] / most) if most > 0 else 1.0


def _color(index: int) -> str:
  return _COLORS[index % len(_COLORS)]


def _panels(count: int) -> tuple[Figure, list[Any]]:
  """Returns a figure of panels, at most four a row."""
  columns = min(count, 4)
  rows = -(-count // columns)
  width = 4.8 if count == 1 else 10.4
  figure = Figure(figsize=(width, 2.7 * rows), layout="constrained")
  axes = [
    figure.add_subplot(rows, columns, index + 1) for index in range(count)
  ]
  return figure, axes


def _svg(figure: Figure) -> str:
  buffer = io.BytesIO()
  # No date: the same report is the same page.
  figure.savefig(buffer, format="svg", metadata={"Date": None})
  return _uri("image/svg+xml", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
