"""Builds the FitReport of any tokenizer, alarms included."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float, Int32

from gr_jax.tokenizers import base, codebook_stats

# faiss warns below 39 points a centroid: codes of fewer rows are noise.
_MIN_ROWS_PER_CODE = 39


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
    counts = codebook_stats.code_counts(codes[:, level], size)
    dead = codebook_stats.dead_codes(counts)
    if learned and dead:
      lines.append(f"Level {level}: {dead} of {size} codes are never used.")
    if codebook_stats.top_share(counts) > max(0.5, 2.0 / size):
      lines.append(
        f"Level {level}: one code holds {counts.max()} of {num_rows} items; "
        "the codebook has collapsed."
      )
  return tuple(lines)


def fit_report(
  tokenizer: base.Tokenizer,
  state: base.State,
  x: Float[np.ndarray, "N D"] | Float[Array, "N D"],
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
    x: The rows it was fitted on.
    started: `time.monotonic()` at the start of the fit.
    codes: Their codes, when the fit chose others than `encode` does.
    revived: Codes re-seeded per level; zeros when none ever are.
    curves: Objectives by iteration or epoch.
    learned: False when no codebook was fitted.
  """
  sizes = tokenizer.codebook_sizes
  if codes is None:
    codes = base.encode_in_chunks(tokenizer, state, x)
  squared, total = 0.0, 0.0
  mean = np.asarray(x.mean(axis=0, keepdims=True))
  for start in range(0, x.shape[0], 1 << 16):
    rows = np.asarray(x[start : start + (1 << 16)])
    decoded = tokenizer.decode(state, codes[start : start + (1 << 16)])
    squared += float(np.sum(np.square(rows - np.asarray(decoded))))
    total += float(np.sum(np.square(rows - mean)))
  levels = codebook_stats.level_statistics(codes, sizes)
  lines = alarms(codes, sizes, learned=learned)
  return base.FitReport(
    codes=codes,
    num_rows=x.shape[0],
    utilization=tuple(level["utilization"] for level in levels),
    dead_codes=tuple(level["dead_codes"] for level in levels),
    perplexity=tuple(level["perplexity"] for level in levels),
    gini=tuple(level["gini"] for level in levels),
    revived=tuple(revived) if revived is not None else (0,) * len(sizes),
    collision_rate=codebook_stats.collision_rate(codes),
    mse=squared / x.shape[0],
    relative_mse=squared / max(total, 1e-30),
    curves=dict(curves or {}),
    alarms=lines,
    seconds=time.monotonic() - started,
  )
