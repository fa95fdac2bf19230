"""Residual quantizer of latents: choices, losses, EMA codebooks. No encoder."""

import itertools
from typing import no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import lookup, nearest
from gr_jax.tokenizers import estimators

# Codes of all levels whose products with each other are computed every step.
_MOST_JOINT_CODES = 2048
stop = lax.stop_gradient


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class QuantizerOutput:
  """What a batch of latents became."""

  quantized: jax.Array  # float32 [B, C], sum of codes as the decoder reads it
  codes: jax.Array  # int32 [B, L]
  codebook_loss: jax.Array  # float32 [], sum over levels of |sg[r] - q|^2
  commitment_loss: jax.Array  # float32 [], sum over levels of |r - sg[q]|^2
  entropy_gap: jax.Array  # float32 [], sum over levels; 0 unless weighted
  residuals: jax.Array  # float32 [L, B, C], what entered each level


@no_type_check
@struct.dataclass
class Choice:
  """Codes of a batch and the code vectors, differentiable, by level."""

  codes: list[jax.Array]  # int32 [B] each
  vectors: list[jax.Array] | jax.Array  # float32 [B, C] each


class ResidualQuantizer(nn.Module):
  """Quantizes z level by level; each level codes what the last left over.

  r_0 = z,  q_l = the code nearest to r_l,  r_{l+1} = r_l - q_l
  (SoundStream, arXiv:2107.03312, Algorithm 1). The losses of one level are
  |sg[r_l] - q_l|^2 and |r_l - sg[q_l]|^2 (VQ-VAE, arXiv:1711.00937, eq. 3),
  means over rows and dimensions.
  """

  codebook_sizes: tuple[int, ...]  # K of each level
  code_dim: int  # C
  estimator: str = "straight_through"
  temperature: float = 1.0  # of gumbel_softmax and the entropy regularizer
  sinkhorn_epsilon: float = 0.0  # > 0: balanced choices while training
  sinkhorn_iters: int = 30
  use_entropy_gap: bool = False

  def setup(self) -> None:
    """Makes one codebook per level; fits replace these first values."""
    self.codebooks = [
      self.param(
        f"codebook_{level}",
        nn.initializers.lecun_normal(),
        (size, self.code_dim),
      )
      for level, size in enumerate(self.codebook_sizes)
    ]

  def __call__(
    self, z: Float[Array, "B C"], *, key: jax.Array | None = None
  ) -> QuantizerOutput:
    """Quantizes a training batch.

    Args:
      z: Encoder outputs.
      key: Random key of gumbel_softmax, which without one chooses the nearest
        code; unused otherwise.
    """
    gumbel = self.estimator == "gumbel_softmax" and key is not None
    chosen = None if gumbel else self._choose(stop(z))
    residual, total = z, jnp.zeros_like(z)
    codes, residuals = [], []
    to_codebook = to_encoder = jnp.zeros_like(z)
    gap = jnp.float32(0.0)
    for level, codebook in enumerate(self.codebooks):
      residuals.append(stop(residual))
      if self.use_entropy_gap:
        distances = nearest.squared_distances(residual, codebook)
        gap += estimators.entropy_gap(distances, temperature=self.temperature)
      if gumbel:
        distances = nearest.squared_distances(residual, codebook)
        choice = estimators.gumbel_softmax(
          distances,
          temperature=self.temperature,
          key=jax.random.fold_in(key, level),
        )
        codes.append(choice.codes)
        q = choice.weights @ codebook  # [B, C]
      else:
        codes.append(chosen.codes[level])  # [B]
        q = chosen.vectors[level]  # [B, C]
      # Squares are added up before the mean: one reduction, not one a level.
      to_codebook += jnp.square(stop(residual) - q)
      to_encoder += jnp.square(residual - stop(q))
      # stop(q): a straight-through q would cancel the residual's gradient, and
      # commitment would not reach the encoder below level 0.
      residual, total = residual - stop(q), total + q
    if self.estimator in estimators.ESTIMATORS:
      # The decoder's gradient never reaches the codebooks.
      total = estimators.ESTIMATORS[self.estimator](z, stop(total))
    return QuantizerOutput(
      quantized=total,
      codes=jnp.stack(codes, axis=-1),  # [B, L]
      codebook_loss=jnp.mean(to_codebook),
      commitment_loss=jnp.mean(to_encoder),
      entropy_gap=gap,
      residuals=jnp.stack(residuals),  # [L, B, C]
    )

  def _choose(self, z: jax.Array) -> "Choice":
    """Chooses codes while training: nearest, or balanced by Sinkhorn."""
    if self.sinkhorn_epsilon > 0:
      codes, residual = [], z
      for codebook in map(stop, self.codebooks):
        found = estimators.sinkhorn_codes(
          nearest.squared_distances(residual, codebook),
          epsilon=self.sinkhorn_epsilon,
          num_iters=self.sinkhorn_iters,
        )
        residual = residual - codebook[found]
        codes.append(found)
    else:
      codes = training_codes(z, [stop(book) for book in self.codebooks])
    if len(set(self.codebook_sizes)) == 1:
      # One batched product for the gradients of all codebooks.
      vectors = jax.vmap(lookup.lookup)(
        jnp.stack(self.codebooks), jnp.stack(codes)
      )  # [L, B, C]
    else:
      vectors = list(map(lookup.lookup, self.codebooks, codes))
    return Choice(codes, vectors)

  def codes(self, z: Float[Array, "B C"]) -> Int32[Array, "B L"]:
    """Returns the nearest codes, level by level: what `encode` returns."""
    residual, codes = z, []
    for codebook in self.codebooks:
      codes.append(nearest.nearest_code(residual, codebook))  # [B]
      residual = residual - codebook[codes[-1]]
    return jnp.stack(codes, axis=-1)  # [B, L]

  def inputs(self, z: Float[Array, "B C"]) -> list[Float[Array, "B C"]]:
    """Returns what enters each level: z, then what the codes chosen leave."""
    residual, inputs = z, []
    for codebook in self.codebooks:
      inputs.append(residual)
      codes = nearest.nearest_code(residual, codebook)  # [B]
      residual = residual - codebook[codes]
    return inputs

  def vectors(self, codes: Int32[Array, "B L"]) -> Float[Array, "B C"]:
    """Returns the sum of the chosen codes."""
    return sum(
      codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)
    )


def training_codes(
  z: Float[Array, "B C"], codebooks: list[Float[Array, "_ C"]]
) -> list[Int32[Array, " B"]]:
  """Nearest codes level by level; of few codes, by one product for all levels.

  |r_l - e|^2 / 2 = |e|^2 / 2 - z.e + sum_{j<l} q_j.e + a term without e, and
  the products q_j.e of codes with codes are entries of one small matrix. In
  exact arithmetic these are the codes of `nearest.nearest_code` on residuals;
  rounding is relative to |z|, not to |r_l|, which only moves near-ties. What
  `encode` returns is computed on residuals, and so are these where the matrix
  would be large.

  Args:
    z: Latents around zero.
    codebooks: One a level.

  Returns:
    One array a level, ties to the lowest code.
  """
  if sum(book.shape[0] for book in codebooks) > _MOST_JOINT_CODES:
    codes, residual = [], z
    for book in codebooks:
      # Latents lie around zero: the shift against cancellation is spared.
      codes.append(nearest.nearest_code(residual, book, centered=False))
      residual = residual - book[codes[-1]]
    return codes
  ends = list(itertools.accumulate(book.shape[0] for book in codebooks))
  stacked = jnp.concatenate(codebooks)  # [sum K, C]
  highest = lax.Precision.HIGHEST
  gram = jnp.matmul(stacked, stacked.T, precision=highest)  # [sum K, sum K]
  norms = 0.5 * jnp.sum(jnp.square(stacked), axis=-1)  # [sum K]
  scores = norms[None, :] - jnp.matmul(z, stacked.T, precision=highest)
  codes, start = [], 0
  for end in ends:
    code = jnp.argmin(scores[:, start:end], axis=-1).astype(jnp.int32)  # [B]
    codes.append(code)
    scores = scores + gram[code + start]  # [B, sum K]
    start = end
  return codes


@no_type_check
@struct.dataclass
class CodebookAverages:
  """Exponential moving averages from which EMA codebooks are computed."""

  counts: tuple[jax.Array, ...]  # float32 [K_l] each, rows per code
  sums: tuple[jax.Array, ...]  # float32 [K_l, C] each, their sum


def start_averages(codebooks: list[jax.Array]) -> CodebookAverages:
  """Starts as if each code had been chosen once, by a row equal to it."""
  return CodebookAverages(
    counts=tuple(jnp.ones((c.shape[0],), jnp.float32) for c in codebooks),
    # A copy: states that hold one buffer twice cannot be donated.
    sums=tuple(jnp.array(c, copy=True) for c in codebooks),
  )


def update_averages(
  averages: CodebookAverages,
  codes: Int32[Array, "B L"],
  residuals: Float[Array, "L B C"],
  *,
  decay: float,
) -> CodebookAverages:
  """Moves the averages towards this batch (VQ-VAE, appendix A.1).

  n_k <- decay n_k + (1 - decay) |batch rows of k|, and likewise their sums.
  The codebook is sums / counts; see `average_codebooks`.

  Args:
    averages: Before.
    codes: Choices of the batch.
    residuals: What entered each level.
    decay: Share kept.
  """
  counts, sums = [], []
  for level, (count, total) in enumerate(
    zip(averages.counts, averages.sums, strict=True)
  ):
    # A column of ones counts the rows in the same product.
    rows = jnp.pad(residuals[level], ((0, 0), (0, 1)), constant_values=1.0)
    batch = lookup.sum_by_id(
      codes[:, level],
      rows,
      num_rows=count.shape[0],
      precision=lax.Precision.HIGHEST,
    )  # [K, C + 1]
    counts.append(decay * count + (1 - decay) * batch[:, -1])
    sums.append(decay * total + (1 - decay) * batch[:, :-1])
  return CodebookAverages(tuple(counts), tuple(sums))


def average_codebooks(
  averages: CodebookAverages, codebooks: list[jax.Array]
) -> list[jax.Array]:
  """Returns sums / counts; a code whose count decayed to nothing stays put."""
  return [
    jnp.where(
      (count > 1e-6)[:, None], total / jnp.maximum(count, 1e-6)[:, None], old
    )
    for count, total, old in zip(
      averages.counts, averages.sums, codebooks, strict=True
    )
  ]


def restart_averages(
  averages: CodebookAverages,
  codebooks: list[jax.Array],
  counts: tuple[jax.Array, ...],
) -> CodebookAverages:
  """Starts the averages of codes that were just revived afresh.

  Args:
    averages: Before.
    codebooks: After the revival.
    counts: int32 [K_l] each; zero where the code was dead.
  """
  fresh = start_averages(codebooks)
  dead = [count == 0 for count in counts]
  return CodebookAverages(
    counts=tuple(map(jnp.where, dead, fresh.counts, averages.counts)),
    sums=tuple(
      jnp.where(d[:, None], new, old)
      for d, new, old in zip(dead, fresh.sums, averages.sums, strict=True)
    ),
  )


def revive_dead(
  codebook: Float[Array, "K C"],
  counts: Int32[Array, " K"],
  rows: Float[Array, "M C"],
  *,
  key: jax.Array,
) -> Float[Array, "K C"]:
  """Replaces codes that no row chose by rows drawn at random, M >= K.

  Args:
    codebook: Codes.
    counts: Rows per code, over the whole catalog.
    rows: Candidates: residuals entering this level.
    key: Random key.
  """
  drawn = rows[jax.random.permutation(key, rows.shape[0])[: counts.shape[0]]]
  return jnp.where((counts == 0)[:, None], drawn, codebook)
