"""Builds the FitReport of any tokenizer, alarms included."""

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from gr_jax.tokenizers import base, codebook_stats

# faiss warns below 39 points a centroid: codes of fewer rows are noise.
_MIN_ROWS_PER_CODE = 39
_CHUNK = 1 << 16  # rows decoded at once


def alarms(
  codes: Int32[np.ndarray, "N L"],
  codebook_sizes: Sequence[int],
  *,
  learned: bool = True,
) -> tuple[str, ...]:
  """Names, with counts, what makes codes usable but poor.

  Args:
    codes: Hard codes of the whole catalog.
    codebook_sizes: K of every level.
    learned: False when no codebook was fitted, so few rows are no fault.

  Returns:
    One line an alarm.
  """
  num_rows, lines = codes.shape[0], []
  for level, size in enumerate(codebook_sizes):
    if learned and num_rows < _MIN_ROWS_PER_CODE * size:
      lines.append(
        f"Level {level}: {num_rows} items for {size} codes, "
        f"{num_rows / size:.1f} each; {_MIN_ROWS_PER_CODE} or more are advised."
      )
    counts = codebook_stats.used_counts(codes[:, level])
    dead = codebook_stats.dead_codes(counts, size)
    if learned and dead:
      lines.append(f"Level {level}: {dead} of {size} codes are never used.")
    if is_collapsed(counts, size):
      lines.append(
        f"Level {level}: one code holds {counts.max()} of {num_rows} items; "
        "the codebook has collapsed."
      )
  return tuple(lines)


def is_collapsed(counts: np.ndarray, size: int) -> bool:
  """Says whether one code of a level holds most of all items.

  Args:
    counts: Items per code; unused codes may be left out.
    size: K.
  """
  return codebook_stats.top_share(counts) > max(0.5, 2.0 / size)


def reconstruction_errors(
  shards: Sequence[np.ndarray | Array],
  reconstruct: Callable[[Array], Array],
) -> tuple[float, float]:
  """Returns the mean squared distance of rows to what is made of them.

  Args:
    shards: Rows, in one piece or several.
    reconstruct: Called on consecutive chunks of rows.

  Returns:
    Mean over rows of |x - x^|^2, and its ratio to that of the mean row.
  """
  num_rows = sum(shard.shape[0] for shard in shards)
  mean = sum(np.asarray(s.sum(axis=0)) for s in shards) / num_rows  # [D]
  squared, total = 0.0, 0.0
  for shard in shards:
    for start in range(0, shard.shape[0], _CHUNK):
      rows = jnp.asarray(shard[start : start + _CHUNK])
      found = _squared_errors(rows, reconstruct(rows), mean)
      squared, total = squared + float(found[0]), total + float(found[1])
  return squared / num_rows, squared / max(total, 1e-30)


@jax.jit
def _squared_errors(
  rows: jax.Array, made: jax.Array, mean: np.ndarray | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Sums of |x - x^|^2 and |x - mean|^2 over a chunk, on the device."""
  return (
    jnp.sum(jnp.square(rows - made)),
    jnp.sum(jnp.square(rows - mean[None, :])),
  )


def fit_report(
  tokenizer: base.Tokenizer,
  state: base.State,
  x: Float[np.ndarray, "N D"] | Float[Array, "N D"] | Sequence[np.ndarray],
  *,
  started: float,
  codes: Int32[np.ndarray, "N L"] | None = None,
  revived: Sequence[int] | None = None,
  curves: Mapping[str, np.ndarray] | None = None,
  learned: bool = True,
) -> base.FitReport:
  """Measures a fitted state on the rows it was fitted on.

  Args:
    tokenizer: The tokenizer.
    state: What it learned.
    x: The rows it was fitted on, in one piece or in shards.
    started: `time.monotonic()` at the start of the fit.
    codes: Their codes, when the fit chose others than `encode` does.
    revived: Codes re-seeded per level; zeros when none ever are.
    curves: Objectives by iteration or epoch.
    learned: False when no codebook was fitted.
  """
  sizes = tokenizer.codebook_sizes
  shards = x if isinstance(x, Sequence) else [x]
  if codes is None:
    codes = np.concatenate(
      [base.encode_in_chunks(tokenizer, state, shard) for shard in shards]
    )
  done = 0

  def decode(rows: Array) -> Array:
    nonlocal done
    done += len(rows)
    return tokenizer.decode(state, codes[done - len(rows) : done])

  mse, relative = reconstruction_errors(shards, decode)
  levels = codebook_stats.level_statistics(codes, sizes)
  lines = alarms(codes, sizes, learned=learned)
  return base.FitReport(
    codes=codes,
    num_rows=codes.shape[0],
    utilization=tuple(level["utilization"] for level in levels),
    dead_codes=tuple(level["dead_codes"] for level in levels),
    perplexity=tuple(level["perplexity"] for level in levels),
    gini=tuple(level["gini"] for level in levels),
    revived=tuple(revived) if revived is not None else (0,) * len(sizes),
    collision_rate=codebook_stats.collision_rate(codes),
    mse=mse,
    relative_mse=relative,
    curves=dict(curves or {}),
    alarms=lines,
    seconds=time.monotonic() - started,
  )
