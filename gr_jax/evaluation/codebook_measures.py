"""What codes are worth, measured: the numbers behind the codebook report."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import progress
from gr_jax.core.checks import InputError
from gr_jax.data.catalog import PATH_SEPARATOR, ItemCatalog
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Examples
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.tokenizers import codebook_stats

HIT_RATE_CUTOFFS = (1, 10, 100)
_CHUNK = 1 << 14  # rows decoded at once
# Beyond these, means are taken over a random sample; the report says so.
_MAX_ROWS = 20_000
_MAX_PAIRS = 5_000
_NUM_DRAWS = 8  # of later levels' codes, where a level is judged alone


@dataclasses.dataclass(frozen=True, eq=False)
class CodebookRun:
  """A fitted tokenizer, what it read, and the codes it gave.

  Attributes:
    name: What the run is called.
    catalog: The items.
    vectors: What the tokenizer was fitted on, a row an item.
    codes: The codes that it gave them, before collisions are resolved.
    codebook_sizes: K of every level.
    decode: Codes [B, L] to vectors [B, D].
    hierarchical: Whether a level refines the one before it.
    sids: The semantic IDs made from the codes, if any yet.
    pairs: Item indices (queries, targets): what users chose, and chose next.
    seconds: How long the fit took, NaN where unknown.
    alarms: What the fit warned of.
    curves: Objectives by iteration or epoch.
    unquantized: Relative error of the fit's networks without codes between
      them, where it has them.
  """

  name: str
  catalog: ItemCatalog
  vectors: np.ndarray  # float32 [N, D]
  codes: np.ndarray  # int32 [N, L]
  codebook_sizes: tuple[int, ...]
  decode: Callable[[np.ndarray], np.ndarray | Array]
  hierarchical: bool = True
  sids: SidCatalog | None = None
  pairs: tuple[np.ndarray, np.ndarray] | None = None
  seconds: float = float("nan")
  alarms: Sequence[str] = ()
  curves: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )
  unquantized: float | None = None

  def __post_init__(self):
    """Refuses parts of different runs.

    Raises:
      InputError: Rows or levels do not match.
    """
    rows = {
      "catalog": self.catalog.num_items,
      "vectors": self.vectors.shape[0],
      "codes": self.codes.shape[0],
    }
    if self.sids is not None:
      rows["sids"] = self.sids.num_items
    if len(set(rows.values())) > 1:
      raise InputError(
        f"Run {self.name!r} mixes catalogs of different sizes: {rows}; take "
        "all parts from one workdir."
      )
    if self.codes.shape[1] != len(self.codebook_sizes):
      raise InputError(
        f"Run {self.name!r} has codes of {self.codes.shape[1]} levels and "
        f"codebook_sizes={self.codebook_sizes}."
      )


def next_item_pairs(
  interactions: Interactions, examples: Examples
) -> tuple[Int32[np.ndarray, "M"], Int32[np.ndarray, "M"]]:
  """Returns the item before each example's target, and the target.

  Hand in validation examples: codebooks are compared before the test.
  """
  target = examples.target_position
  return interactions.items[target - 1], interactions.items[target]


def measure(
  run: CodebookRun, *, generator: np.random.Generator
) -> dict[str, Any]:
  """Measures a run.

  Args:
    run: The run.
    generator: Draws the samples of large catalogs, and donors of codes.

  Returns:
    Plain JSON types: name, sizes, "levels" (usage, balance, the hourglass
    figures), "ids" (collisions), "buckets" (items on an ID -> such IDs),
    "resolved" (the semantic IDs, None before), "reconstruction", "hit_rate"
    (None without pairs), "seconds", "alarms", "curves".
  """
  # Four steps, of which only reconstruction and hit rates take time.
  with progress.bar(f"measuring {run.name}", total=4, unit="part") as advance:
    report = {
      "name": run.name,
      "num_items": run.catalog.num_items,
      "embedding_dim": run.vectors.shape[1],
      "codebook_sizes": list(run.codebook_sizes),
      "hierarchical": run.hierarchical,
      "seconds": None if np.isnan(run.seconds) else run.seconds,
      "alarms": list(run.alarms),
      "curves": {k: [float(x) for x in v] for k, v in run.curves.items()},
      "levels": codebook_stats.level_statistics(run.codes, run.codebook_sizes),
      "ids": codebook_stats.id_statistics(run.codes),
      "buckets": codebook_stats.bucket_sizes(run.codes),
      "resolved": _resolved(run.sids),
    }
    advance()
    rows = np.arange(run.codes.shape[0])
    if rows.size > _MAX_ROWS:
      rows = np.sort(generator.choice(rows, _MAX_ROWS, replace=False))
    # Hit rates first: how much the other draws depends on the levels, and all
    # tokenizers of one catalog shall be judged on the same pairs.
    report["hit_rate"] = _hit_rates(run, generator)
    advance(2)
    report["reconstruction"] = _reconstruction(run, rows, generator)
    report["reconstruction"]["unquantized"] = run.unquantized
    advance()
  return report


def reconstruction_by_level(
  run: CodebookRun,
  rows: Int[np.ndarray, "n"],
  generator: np.random.Generator,
) -> list[float]:
  """Returns the relative error that the first 0, 1, ..., L levels leave.

  What the first l codes of an item say is the mean of what they decode to
  with the later codes taken from other items, drawn at random. Where decoding
  is a sum this is the partial sum, and it needs nothing of the tokenizer but
  `decode`. The variance that a finite number of draws adds is subtracted.

  Args:
    run: The run.
    rows: Items to measure on.
    generator: Draws the donors of later codes.

  Returns:
    L + 1 values: squared error over that of the mean row, the first near 1.
  """
  x, codes = run.vectors[rows], run.codes[rows]
  total = np.sum(np.square(x - x.mean(axis=0, keepdims=True)))
  errors = []
  for level in range(codes.shape[1]):
    mean = np.zeros_like(x)
    square = 0.0
    for _ in range(_NUM_DRAWS):
      donors = run.codes[generator.integers(run.codes.shape[0], size=rows.size)]
      mixed = np.concatenate([codes[:, :level], donors[:, level:]], axis=1)
      decoded = _decode(run, mixed)
      mean += decoded / np.float32(_NUM_DRAWS)
      square += float(np.sum(np.square(decoded)))
    # Sum over rows of the draws' variance, and of that of their mean.
    spread = square - _NUM_DRAWS * float(np.sum(np.square(mean)))
    excess = spread / (_NUM_DRAWS - 1) / _NUM_DRAWS
    error = float(np.sum(np.square(x - mean))) - excess
    errors.append(error / float(max(total, 1e-30)))
  errors.append(codebook_stats.relative_mse(x, _decode(run, codes)))
  return errors


def describe(
  categories: Sequence[str], titles: Sequence[str], *, num_words: int = 3
) -> str:
  """Says in a few words what some items have in common.

  The deepest category path that at least half of them lie under, with its
  share; without categories, the most frequent words of their titles.

  >>> describe(["A > B", "A > B > C", "A > D"], [""] * 3)
  'A > B (67 %)'
  """
  paths = collections.Counter()
  for category in categories:
    names = category.split(PATH_SEPARATOR) if category else []
    paths.update(
      PATH_SEPARATOR.join(names[: depth + 1]) for depth in range(len(names))
    )
  wide = [p for p, count in paths.items() if 2 * count >= len(categories)]
  if wide:
    best = max(wide, key=lambda p: (p.count(PATH_SEPARATOR), paths[p], p))
    return f"{best} ({paths[best] / len(categories):.0%})".replace("%", " %")
  words = collections.Counter()
  for title in titles:
    words.update({w for w in title.lower().split() if len(w) > 3})
  common = sorted(words.items(), key=lambda pair: (-pair[1], pair[0]))
  return ", ".join(word for word, _ in common[:num_words])


def _resolved(sids: SidCatalog | None) -> dict[str, Any] | None:
  if sids is None:
    return None
  lengths = sids.lengths
  return {
    "codebook_sizes": list(sids.codebook_sizes),
    "num_semantic_levels": sids.num_semantic_levels,
    "shares_ids": sids.shares_ids,
    "shortest": int(lengths.min()),
    "longest": int(lengths.max()),
    "distinct_ids": int(np.unique(sids.codes, axis=0).shape[0]),
  }


def _reconstruction(
  run: CodebookRun, rows: np.ndarray, generator: np.random.Generator
) -> dict[str, Any]:
  x = run.vectors[rows]
  decoded = _decode(run, run.codes[rows])
  return {
    "num_rows": int(rows.size),
    "mse": codebook_stats.reconstruction_mse(x, decoded),
    "relative_mse": codebook_stats.relative_mse(x, decoded),
    "cosine": codebook_stats.reconstruction_cosine(x, decoded),
    "by_level": reconstruction_by_level(run, rows, generator),
  }


def _hit_rates(
  run: CodebookRun, generator: np.random.Generator
) -> dict[str, Any] | None:
  """Returns the hit rates of embeddings, of decoded codes, and by chance."""
  if run.pairs is None or not run.pairs[0].size:
    return None
  queries, targets = run.pairs
  if queries.size > _MAX_PAIRS:
    chosen = generator.choice(queries.size, _MAX_PAIRS, replace=False)
    queries, targets = queries[chosen], targets[chosen]
  num_items = run.codes.shape[0]
  cutoffs = [k for k in HIT_RATE_CUTOFFS if k < num_items]
  decoded = _decode(run, run.codes)
  return {
    "num_pairs": int(queries.size),
    "embedding": codebook_stats.hit_rate(
      run.vectors, queries, targets, at=cutoffs
    ),
    "decoded": codebook_stats.hit_rate(decoded, queries, targets, at=cutoffs),
    "chance": {f"hit_rate@{k}": k / (num_items - 1) for k in cutoffs},
  }


def _decode(run: CodebookRun, codes: np.ndarray) -> Float[np.ndarray, "n D"]:
  """Decodes in chunks of one shape, so that one program is compiled."""
  size = min(_CHUNK, codes.shape[0])
  parts = []
  for start in range(0, codes.shape[0], size):
    chunk = codes[start : start + size]
    padding = np.zeros((size - chunk.shape[0], codes.shape[1]), codes.dtype)
    decoded = run.decode(np.concatenate([chunk, padding]))
    parts.append(np.asarray(decoded, np.float32)[: chunk.shape[0]])
  return np.concatenate(parts)
