"""What tokenizers with codebooks trained by gradient have in common.

EMA codebooks, revival of dead codes and the look at the hard codes of the
whole catalog. A subclass says what enters each codebook and where it lies.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import checks, row_split
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  base,
  codebook_init,
  codebook_stats,
  gradient_fit,
  quantizer,
  reporting,
)

# Rows whose activations are held at once when the whole catalog is encoded.
_ENCODE_CHUNK = 1 << 14


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class CatalogCheck:
  """Hard codes of the whole catalog after a round of epochs."""

  counts: tuple[jax.Array, ...]  # int32 [K_l] each, items per code
  revived: jax.Array  # int32 [L], codes re-seeded now


@dataclasses.dataclass(frozen=True)
class CodebookOptions(gradient_fit.GradientOptions):
  """Options and behavior of codebooks that train with the gradient's loop.

  Codebooks lie at params["quantizer"]["codebook_<level>"].
  """

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  codebook_init: str = "first_batch_kmeans"
  ema_decay: float = 0.0  # > 0: codebooks follow averages, not the gradient
  revive_dead_codes: bool = True

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    self.check_options()
    checks.check_known(
      self.codebook_init, codebook_init.CODEBOOK_INITS, "codebook_init"
    )
    if not 0.0 <= self.ema_decay < 1.0:
      raise checks.InputError(f"{self.ema_decay=}; want 0 <= ema_decay < 1.")

  def hard_codes(
    self, params: Any, x: Float[Array, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the codes that `encode` would, at training precision."""
    raise NotImplementedError

  def codebook_inputs(
    self, params: Any, x: Float[Array, "B D"]
  ) -> Sequence[Float[Array, "B C"]]:
    """Returns what each codebook quantizes, one array a level."""
    raise NotImplementedError

  def codebooks(self, params: Any) -> list[jax.Array]:
    """Returns the codebooks, float32 [K_l, C] each."""
    levels = range(len(self.codebook_sizes))
    return [params["quantizer"][f"codebook_{level}"] for level in levels]

  def with_codebooks(self, params: Any, codebooks: Sequence[Any]) -> Any:
    """Returns the parameters with other codebooks."""
    named = {f"codebook_{i}": c for i, c in enumerate(codebooks)}
    return {**params, "quantizer": named}

  def start_extra(self, params: Any) -> Any:
    """Returns what the loop carries beside the parameters."""
    if not self.ema_decay:
      return ()
    return quantizer.start_averages(self.codebooks(params))

  def after_step(self, params, extra, seen):
    """Implements `gradient_fit.Program`: EMA codebooks.

    Args:
      params: Parameters after the optimizer's update.
      extra: Running averages, or ().
      seen: (codes [B, L], inputs [L, B, C]) of the batch, or ().
    """
    if not self.ema_decay:
      return params, extra
    extra = quantizer.update_averages(extra, *seen, decay=self.ema_decay)
    codebooks = quantizer.average_codebooks(extra, self.codebooks(params))
    return self.with_codebooks(params, codebooks), extra

  def check(self, params, extra, x, *, key, revive, split=None):
    """Implements `gradient_fit.Program`: catalog usage and revival."""
    counts = count_codes(
      self.hard_codes, params, x, self.codebook_sizes, split=split
    )
    nothing = jnp.zeros((len(self.codebook_sizes),), jnp.int32)
    if not self.revive_dead_codes:
      return params, extra, CatalogCheck(counts, nothing)
    dead = functools.reduce(
      jnp.logical_or, [jnp.any(count == 0) for count in counts]
    )
    params, extra, number = lax.cond(
      dead & revive,
      lambda: self._revive(params, extra, counts, x, key, split),
      lambda: (params, extra, nothing),
    )
    return params, extra, CatalogCheck(counts, number)

  def alarms(self, seen):
    """Implements `gradient_fit.Program`: unused and overfull codes."""
    return training_alarms(seen)

  def _revive(self, params, extra, counts, x, key, split):
    """Moves dead codes of each level to what random rows put there."""
    sample_key, code_key = jax.random.split(key)
    most = max(self.codebook_sizes)  # distinct rows; N >= K was checked
    num_rows = x.shape[0] if split is None else split.num_rows
    rows = x[jax.random.permutation(sample_key, num_rows)[:most]]
    inputs = self.codebook_inputs(params, rows)
    codebooks = [
      quantizer.revive_dead(
        codebook,
        counts[level],
        inputs[level],
        key=jax.random.fold_in(code_key, level),
      )
      for level, codebook in enumerate(self.codebooks(params))
    ]
    if self.ema_decay:
      extra = quantizer.restart_averages(extra, codebooks, counts)
    number = jnp.stack([jnp.sum(count == 0) for count in counts])
    return (
      self.with_codebooks(params, codebooks),
      extra,
      number.astype(jnp.int32),
    )


def count_codes(
  encode: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  x: Float[Array, "N D"],
  codebook_sizes: Sequence[int],
  *,
  split: RowSplit | None = None,
) -> tuple[Int32[Array, "..."], ...]:
  """Counts the items of every code of every level, chunk by chunk.

  Args:
    encode: Parameters and rows [B, D] -> codes [B, L].
    params: The parameters.
    x: All rows.
    codebook_sizes: K of every level.
    split: How the rows lie on several devices.
  """
  run = functools.partial(
    _count_codes, encode, codebook_sizes=tuple(codebook_sizes), split=split
  )
  if split is not None:
    run = split.run(run, takes_rows=(False, True))
  return run(params, x)


def _count_codes(
  encode: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  x: jax.Array,
  *,
  codebook_sizes: tuple[int, ...],
  split: RowSplit | None,
) -> tuple[jax.Array, ...]:
  """Implements `count_codes` on one device's rows."""
  num_rows = x.shape[0]
  chunk = min(_ENCODE_CHUNK, num_rows)

  def body(step: jax.Array, counts):
    start = jnp.minimum(step * chunk, num_rows - chunk)
    rows = lax.dynamic_slice_in_dim(x, start, chunk)
    codes = encode(params, rows)  # [chunk, L]
    # The last chunk starts early: its rows already counted weigh nothing.
    is_new = start + jnp.arange(chunk) >= step * chunk
    if split is not None:
      is_new &= lax.dynamic_slice_in_dim(split.is_row(), start, chunk)
    fresh = is_new.astype(jnp.int32)
    return tuple(
      count + jnp.bincount(codes[:, level], weights=fresh, length=size)
      for level, (count, size) in enumerate(
        zip(counts, codebook_sizes, strict=True)
      )
    )

  zeros = tuple(jnp.zeros((size,), jnp.int32) for size in codebook_sizes)
  counts = lax.fori_loop(0, -(-num_rows // chunk), body, zeros)
  return row_split.total(split, counts)


def training_alarms(seen: CatalogCheck) -> dict[str, str]:
  """Says which levels of the whole catalog are going wrong.

  Args:
    seen: Hard codes after a round, host arrays.

  Returns:
    A line for each level that leaves most codes unused, and for each of which
    one code holds most items; both also stand in the fit's report if they
    last.
  """
  lines = {}
  for level, counts in enumerate(seen.counts):
    dead = codebook_stats.dead_codes(counts)
    if 2 * dead > counts.size:
      lines[f"dead/{level}"] = (
        f"Level {level}: {dead} of {counts.size} codes are not used."
      )
    if reporting.is_collapsed(counts, counts.size):
      lines[f"collapsed/{level}"] = (
        f"Level {level}: one code holds {counts.max()} of {counts.sum()} items."
      )
  return lines


def usage_curves(rounds: Sequence[CatalogCheck]) -> dict[str, np.ndarray]:
  """Returns usage, dead codes and Gini of each level by round.

  Args:
    rounds: Checks of the whole catalog, host arrays.
  """
  measures = {
    "utilization": codebook_stats.utilization,
    "dead_codes": codebook_stats.dead_codes,
    "gini": codebook_stats.gini,
  }
  return {
    f"{name}/level_{level}": np.array([f(r.counts[level]) for r in rounds])
    for name, f in measures.items()
    for level in range(len(rounds[0].counts))
  }


def total_revived(rounds: Sequence[CatalogCheck]) -> list[int]:
  """Returns how many codes of each level were re-seeded in all."""
  return [int(n) for n in np.sum([r.revived for r in rounds], axis=0)]
