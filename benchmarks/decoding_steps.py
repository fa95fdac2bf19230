"""Searches over given logits, and how benchmarks/decoding.py times them."""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.decoding import beam_search, scoring, selection
from gr_jax.decoding.extension import Tuning

# Selection alone: (batch, candidates, beams) that the first cells meet.
SELECTIONS = [
  (2, 4480, 70), (2, 2240, 70), (64, 3200, 50), (64, 1600, 50),
  (64, 32000, 500), (64, 16000, 500), (64, 9000, 500), (16, 3200, 50),
  (16, 400, 50), (64, 500, 500),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CatalogSize:
  """A random catalog: N distinct IDs of L codes below V."""

  num_items: int
  num_codes: int
  num_levels: int
  skewed: bool = False  # Zipf-like codes, another order under every prefix

  @property
  def name(self) -> str:
    """For tables."""
    skewed = " skewed" if self.skewed else ""
    return (
      f"N {self.num_items:.0e} V {self.num_codes} L {self.num_levels}{skewed}"
    )


@dataclasses.dataclass(frozen=True)
class Layout:
  """All levels share the V tokens, as in STATIC's benchmark."""

  codebook_sizes: tuple[int, ...]
  append_eos: bool = False
  eos_id: int = 0

  @property
  def level_offsets(self) -> tuple[int, ...]:
    """First token of each level."""
    return (0,) * len(self.codebook_sizes)

  @property
  def vocab_size(self) -> int:
    """V."""
    return self.codebook_sizes[0]


def make_codes(size: CatalogSize) -> np.ndarray:
  """Returns distinct sorted IDs, [N, L]."""
  rng = np.random.default_rng(0)
  n, v, levels = size.num_items, size.num_codes, size.num_levels
  per_word = min(levels, int(63 // np.log2(v)))
  if size.skewed:
    chance = 1.0 / (np.arange(v) + 3.0) ** 1.15
    chance = np.cumsum(chance / chance.sum())
    key = np.zeros(n, np.int64)
    for _ in range(levels):
      rank = np.searchsorted(chance, rng.random(n)).clip(0, v - 1)
      key = key * v + (rank + (key * 2654435761 >> 7)) % v
    per_word = levels
    key = np.unique(key)
  else:
    # Sums of exponential gaps are sorted uniform numbers.
    gaps = rng.exponential(size=n + 1)
    key = np.cumsum(gaps)
    key = (key[:-1] / key[-1] * v**per_word).astype(np.int64)
    key = key[np.append(True, key[1:] > key[:-1])]
  codes = np.empty((len(key), levels), np.uint16 if v > 256 else np.uint8)
  for l in range(per_word - 1, -1, -1):
    codes[:, l] = key % v
    key //= v
  for l in range(per_word, levels):
    codes[:, l] = rng.integers(0, v, len(key))
  return codes


def chained(search: Callable[..., Any]) -> Callable[..., Any]:
  """Runs `search(index, logits, nudge)` on each set of logits, in turn.

  `search` returns any arrays, the first of them integers >= 0 [B, ...]. From
  those comes the nudge, a zero that the next search has to wait for.
  """
  inner = jax.jit(search)

  def run(index, logit_sets):
    nudge, results = jnp.zeros((), jnp.float32), []
    for logits in logit_sets:
      result = inner(index, logits, nudge)
      first = jax.tree.leaves(result)[0]
      nudge = jnp.minimum(jnp.min(first), 0).astype(jnp.float32)
      results.append(result)
    return results

  return run


def our_search(
  layout: Layout, batch: int, beam: int, tuning: Tuning, constrained: bool
) -> Callable[..., Any]:
  """Returns our search over given logits, for `chained`."""

  def search(tree, logits, nudge):
    def tokens_to_logits(tokens, cache, level):
      given = logits[level][:, : tokens.shape[1]]
      return (given + nudge if level == 0 else given), cache

    result = beam_search.beam_search(
      tokens_to_logits,
      {},
      tree,
      layout,
      batch_size=batch,
      beam_width=beam,
      constrained=constrained,
      tuning=tuning,
    )
    # A free search leaves the catalog: its codes come first, never negative.
    return result.codes, result.scores, result.item_index

  return search


def reference(
  codes: np.ndarray, logits: list[np.ndarray], beam: int, by_id: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Beam search in NumPy over sorted IDs; returns IDs [W, L], scores [W].

  Args:
    codes: Sorted IDs.
    logits: Per level [>= W, V], rows by place of the beam.
    beam: W.
    by_id: Whether beams keep the order of their IDs (ours) or of their
      scores (STATIC's); the result is best first either way.
  """
  low, high = np.array([0]), np.array([len(codes)])
  score = np.zeros(1)
  for l in range(codes.shape[1]):
    x = logits[l][: len(low)].astype(np.float64)
    top = x.max(1, keepdims=True)
    x = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    totals, lows, highs = [], [], []
    for place, (begin, end) in enumerate(zip(low, high, strict=True)):
      column = codes[begin:end, l]
      first = np.flatnonzero(np.append(True, column[1:] != column[:-1]))
      totals.append(score[place] + x[place, column[first]])
      lows.append(begin + first)
      highs.append(begin + np.append(first[1:], end - begin))
    totals, lows, highs = (np.concatenate(a) for a in (totals, lows, highs))
    chosen = np.argsort(-totals, kind="stable")[:beam]
    if by_id:
      chosen = np.sort(chosen)
    score, low, high = totals[chosen], lows[chosen], highs[chosen]
  order = np.argsort(-score, kind="stable")
  return codes[low[order]].astype(np.int64), score[order]


def time_calls(
  run: Callable[[], Any], units: int, tiny: bool
) -> dict[str, float]:
  """Times back-to-back calls; microseconds a unit, of which a call has many."""
  jax.block_until_ready(run())
  began = time.perf_counter()
  jax.block_until_ready(run())
  once = time.perf_counter() - began
  calls = 2 if tiny else int(np.clip(0.03 / once, 3, 100))
  times, dispatch = [], []
  for _ in range(3 if tiny else 7):
    began = time.perf_counter()
    for _ in range(calls):
      # Dropped first, so that every call writes where the last one did: a
      # recorded graph of kernels is changed for each new address.
      result = None
      result = run()
    dispatch.append((time.perf_counter() - began) / (calls * units))
    jax.block_until_ready(result)
    times.append((time.perf_counter() - began) / (calls * units))
  return {
    "us": statistics.median(times) * 1e6,
    "spread_us": (max(times) - min(times)) * 1e6,
    "dispatch_us": statistics.median(dispatch) * 1e6,
  }


def make_logits(
  batch: int, beam: int, size: CatalogSize, num_sets: int
) -> list[list[jax.Array]]:
  """Random float32 logits, [B, 1, V] at the first level, then [B, W, V]."""
  make = jax.jit(
    lambda key, beams: (
      2.0 * jax.random.normal(key, (batch, beams, size.num_codes))
    ),
    static_argnums=1,
  )
  keys = jax.random.split(jax.random.key(1), num_sets * size.num_levels)
  keys = iter(keys)
  return [
    [make(next(keys), beam if l else 1) for l in range(size.num_levels)]
    for _ in range(num_sets)
  ]


def shapes_of(arrays: Any) -> Any:
  """Returns shapes and dtypes as they are on the device."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, jax.dtypes.canonicalize_dtype(x.dtype)
    ),
    arrays,
  )


def save_arrays(
  folder: pathlib.Path | None, name: str, arrays: Mapping[str, np.ndarray]
) -> None:
  """Stores arrays as files of their own, which load fast; no folder: not."""
  if folder is None:
    return
  partial = folder / f"{name}.partial"
  partial.mkdir(parents=True, exist_ok=True)
  for key, array in arrays.items():
    np.save(partial / f"{key}.npy", array)
  partial.rename(folder / name)


def load_arrays(
  folder: pathlib.Path | None, name: str
) -> dict[str, np.ndarray] | None:
  """Reads what `save_arrays` stored; None if it did not."""
  if folder is None or not (folder / name).is_dir():
    return None
  return {p.stem: np.load(p) for p in (folder / name).glob("*.npy")}


def selections(tiny: bool) -> dict[str, Any]:
  """Ways to select k of n, alone, for `micro_rows`."""
  found = {}
  for batch, n, k in [(2, 96, 5)] if tiny else SELECTIONS:
    shape = f"B {batch} n {n} k {k}"
    if k == n:
      for method in ("sort", "count"):
        found[f"{shape} | rank all, {method}"] = (
          lambda x, m=method: selection.best_first(x, method=m),
          (batch, n),
        )
      continue
    for method in selection.METHODS:
      found[f"{shape} | {method}"] = (
        lambda x, k=k, m=method: selection.best_in_order(x, k, method=m),
        (batch, n),
      )
    found[f"{shape} | lax.top_k"] = (
      lambda x, k=k: jax.lax.top_k(x, k)[1],
      (batch, n),
    )
  return found


def normalizers(tiny: bool) -> dict[str, Any]:
  """Ways to normalize logits, alone, for `micro_rows`."""
  shapes = [(2, 5, 64)] if tiny else [(2, 70, 2048), (64, 50, 2048)]
  shapes += [] if tiny else [(64, 500, 2048)]
  found = {}
  for shape in shapes:
    for method in scoring.NORMALIZERS[1:]:

      def normalize(x, method=method):
        log_norm = scoring.log_normalizer(x, method=method)
        return jnp.zeros(x.shape[0], jnp.int32), log_norm

      found[f"{shape} | {method}"] = (normalize, shape)

    def group_maxima(x):
      grouped = x.reshape(*x.shape[:2], -1, 32)
      return jnp.zeros(x.shape[0], jnp.int32), jnp.max(grouped, axis=-1)

    found[f"{shape} | maxima of groups of 32"] = (group_maxima, shape)
  return found
