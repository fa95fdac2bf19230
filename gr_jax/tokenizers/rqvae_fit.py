"""The `rq_vae` tokenizer: options, revival and alarms, fit, encode, decode."""

import dataclasses
import functools
import time
from typing import Any, ClassVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import checks, rng
from gr_jax.tokenizers import (
  base,
  codebook_init,
  codebook_stats,
  estimators,
  gradient_fit,
  kmeans,
  quantizer,
  reporting,
  rqvae,
)

# Codebooks start from the latents of at most this many rows per code.
_INIT_ROWS_PER_CODE = 64
# Rows whose activations are held at once when the whole catalog is encoded.
_ENCODE_CHUNK = 1 << 14


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class RQVAEState:
  """Networks, codebooks and the input's normalization."""

  params: Any  # float32 leaves: encoder, decoder, quantizer
  normalization: gradient_fit.Normalization


@no_type_check
@struct.dataclass
class CatalogCheck:
  """Hard codes of the whole catalog after a round of epochs."""

  counts: tuple[jax.Array, ...]  # int32 [K_l] each, items per code
  revived: jax.Array  # int32 [L], codes re-seeded now


def count_codes(
  encode, x: Float[Array, "N D"], codebook_sizes: tuple[int, ...]
) -> tuple[Int32[Array, "..."], ...]:
  """Counts the items of every code of every level, chunk by chunk.

  Args:
    encode: Rows [B, D] -> codes [B, L].
    x: All rows.
    codebook_sizes: K of every level.
  """
  num_rows = x.shape[0]
  chunk = min(_ENCODE_CHUNK, num_rows)

  def body(step: jax.Array, counts):
    start = jnp.minimum(step * chunk, num_rows - chunk)
    codes = encode(lax.dynamic_slice_in_dim(x, start, chunk))  # [chunk, L]
    # The last chunk starts early: its rows already counted weigh nothing.
    fresh = (start + jnp.arange(chunk) >= step * chunk).astype(jnp.int32)
    return tuple(
      count + jnp.bincount(codes[:, level], weights=fresh, length=size)
      for level, (count, size) in enumerate(
        zip(counts, codebook_sizes, strict=True)
      )
    )

  zeros = tuple(jnp.zeros((size,), jnp.int32) for size in codebook_sizes)
  return lax.fori_loop(0, -(-num_rows // chunk), body, zeros)


@dataclasses.dataclass(frozen=True)
class RQVAE(gradient_fit.GradientOptions):
  """Residual-quantized autoencoder (RQ-VAE, arXiv:2203.01941; TIGER).

  Encoder z = f(x); r_0 = z, q_l = argmin_e |r_l - e|, r_{l+1} = r_l - q_l;
  x^ = g(sum_l q_l). Loss: see `rqvae.loss`.
  """

  hierarchical: ClassVar[bool] = True

  codebook_sizes: tuple[int, ...] = (256, 256, 256)
  hidden_dims: tuple[int, ...] = (512, 256, 128)
  code_dim: int = 32
  commitment_weight: float = 0.25  # beta
  codebook_init: str = "first_batch_kmeans"
  estimator: str = "straight_through"  # rotation_trick, gumbel_softmax
  temperature: float = 1.0  # of gumbel_softmax and the entropy regularizer
  ema_decay: float = 0.0  # > 0: codebooks follow averages, not the gradient
  sinkhorn_epsilon: float = 0.0  # > 0: balanced choices while training
  entropy_weight: float = 0.0  # > 0: reward even usage within a batch
  revive_dead_codes: bool = True

  def __post_init__(self):
    """Refuses impossible options."""
    base.check_sizes(self.codebook_sizes)
    self.check_options()
    checks.check_known(
      self.codebook_init, codebook_init.CODEBOOK_INITS, "codebook_init"
    )
    estimators.check_estimator(self.estimator)
    if not 0.0 <= self.ema_decay < 1.0:
      raise checks.InputError(f"{self.ema_decay=}; want 0 <= ema_decay < 1.")

  def network(
    self, embedding_dim: int, *, training: bool
  ) -> rqvae.RQVAENetwork:
    """Returns the network; when encoding it computes in full float32.

    Args:
      embedding_dim: D.
      training: Use `compute_dtype` and the backend's matmul precision.
    """
    return rqvae.RQVAENetwork(
      embedding_dim=embedding_dim,
      hidden_dims=self.hidden_dims,
      code_dim=self.code_dim,
      quantizer=quantizer.ResidualQuantizer(
        codebook_sizes=self.codebook_sizes,
        code_dim=self.code_dim,
        estimator=self.estimator,
        temperature=self.temperature,
        sinkhorn_epsilon=self.sinkhorn_epsilon,
        use_entropy_gap=self.entropy_weight > 0,
      ),
      dtype=self.compute_dtype if training else "float32",
      precision=None if training else lax.Precision.HIGHEST,
    )

  def loss(self, params, x, *, key):
    """Implements `gradient_fit.Program`."""
    out = self.network(x.shape[1], training=True).apply(
      {"params": params}, x, key=key
    )
    total, metrics = rqvae.loss(
      x,
      out,
      commitment_weight=self.commitment_weight,
      codebook_weight=0.0 if self.ema_decay else 1.0,
      entropy_weight=self.entropy_weight,
    )
    seen = ()
    if self.ema_decay:
      seen = (out.quantizer.codes, out.quantizer.residuals)
    return total, (metrics, seen)

  def after_step(self, params, extra, seen):
    """Implements `gradient_fit.Program`: EMA codebooks."""
    if not self.ema_decay:
      return params, extra
    extra = quantizer.update_averages(extra, *seen, decay=self.ema_decay)
    codebooks = quantizer.average_codebooks(extra, self._codebooks(params))
    return self._with_codebooks(params, codebooks), extra

  def check(self, params, extra, x, *, key, revive):
    """Implements `gradient_fit.Program`: catalog usage and revival."""
    network = self.network(x.shape[1], training=True)
    counts = count_codes(
      lambda rows: network.apply({"params": params}, rows, method="encode"),
      x,
      self.codebook_sizes,
    )
    nothing = jnp.zeros((len(self.codebook_sizes),), jnp.int32)
    if not self.revive_dead_codes:
      return params, extra, CatalogCheck(counts, nothing)

    def revived():
      return self._revive(params, extra, counts, x, key)

    dead = functools.reduce(
      jnp.logical_or, [jnp.any(count == 0) for count in counts]
    )
    params, extra, number = lax.cond(
      dead & revive, revived, lambda: (params, extra, nothing)
    )
    return params, extra, CatalogCheck(counts, number)

  def _revive(self, params, extra, counts, x, key):
    """Moves dead codes of each level to residuals of random rows."""
    sample_key, code_key = jax.random.split(key)
    most = max(self.codebook_sizes)  # distinct rows; N >= K was checked
    rows = x[jax.random.permutation(sample_key, x.shape[0])[:most]]
    network = self.network(x.shape[1], training=True)
    residual = network.apply({"params": params}, rows, method="latents")
    codebooks, number = [], []
    for level, codebook in enumerate(self._codebooks(params)):
      codes = quantizer.nearest.nearest_code(residual, codebook)
      codebooks.append(
        quantizer.revive_dead(
          codebook,
          counts[level],
          residual,
          key=jax.random.fold_in(code_key, level),
        )
      )
      residual = residual - codebook[codes]
      number.append(jnp.sum(counts[level] == 0).astype(jnp.int32))
    if self.ema_decay:
      fresh = quantizer.start_averages(codebooks)
      extra = jax.tree.map(
        lambda new, old, count: jnp.where(
          (count == 0).reshape(-1, *(1,) * (new.ndim - 1)), new, old
        ),
        fresh,
        extra,
        quantizer.CodebookAverages(counts=counts, sums=counts),
      )
    return self._with_codebooks(params, codebooks), extra, jnp.stack(number)

  def _codebooks(self, params) -> list[jax.Array]:
    levels = range(len(self.codebook_sizes))
    return [params["quantizer"][f"codebook_{level}"] for level in levels]

  def _with_codebooks(self, params, codebooks):
    named = {f"codebook_{i}": c for i, c in enumerate(codebooks)}
    return {**params, "quantizer": named}

  def init_params(self, x: Float[Array, "N D"], *, key: jax.Array) -> Any:
    """Draws networks and fills codebooks from latent residuals.

    Args:
      x: All rows, normalized.
      key: Random key.
    """
    network = self.network(x.shape[1], training=False)
    variables = jax.jit(network.init)(rng.stream(key, "networks"), x[:1])
    params = variables["params"]
    rows = kmeans.sample_rows(
      x,
      _INIT_ROWS_PER_CODE * max(self.codebook_sizes),
      rng.stream(key, "rows"),
    )
    latents = jax.jit(functools.partial(network.apply, method="latents"))(
      variables, rows
    )
    codebooks = codebook_init.init_codebooks(
      latents,
      self.codebook_sizes,
      name=self.codebook_init,
      key=rng.stream(key, "codebooks"),
    )
    return self._with_codebooks(params, codebooks)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: RQVAEState | None = None,
  ) -> tuple[RQVAEState, base.FitReport]:
    """Trains networks and codebooks; `init` gives their first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration. Its
        normalization is kept, so that its networks see what they know.

    Returns:
      The state; curves hold every loss term by epoch, and usage, dead codes
      and Gini of each level by round of `check_every_epochs`.

    Raises:
      InputError: See `base.check_fit`; the loss is not finite.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    rows = jnp.asarray(x)
    if init is None:
      normalization = gradient_fit.fit_normalization(
        rows, standardize=self.standardize
      )
    else:
      normalization = init.normalization
    rows = gradient_fit.normalize(normalization, rows)
    if init is None:
      params = self.init_params(rows, key=rng.stream(key, "init"))
    else:
      params = jax.tree.map(jnp.array, init.params)  # a copy: it is donated
    extra = ()
    if self.ema_decay:
      extra = quantizer.start_averages(self._codebooks(params))
    outcome = gradient_fit.fit(
      self, params, extra, rows, key=key, name=type(self).__name__
    )
    state = RQVAEState(outcome.params, normalization)
    revived = np.sum([r.revived for r in outcome.rounds], axis=0)
    return state, reporting.fit_report(
      self,
      state,
      x,
      started=started,
      revived=[int(n) for n in revived],
      curves={**outcome.curves, **usage_curves(outcome.rounds)},
    )

  def encode(
    self, state: RQVAEState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the nearest codes of every level, in full float32."""
    base.check_rows(x, state.normalization.mean.shape[0])
    return self._encode(state, x)

  @functools.partial(jax.jit, static_argnames="self")
  def _encode(self, state, x):
    x = gradient_fit.normalize(state.normalization, x)
    return self.network(x.shape[1], training=False).apply(
      {"params": state.params}, x, method="encode"
    )

  def decode(
    self, state: RQVAEState, codes: Int32[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the decoder's output for codes, in the input's units."""
    base.check_codes(codes, self.codebook_sizes)
    return self._decode(state, jnp.asarray(codes))

  @functools.partial(jax.jit, static_argnames="self")
  def _decode(self, state, codes):
    width = state.normalization.mean.shape[0]
    x = self.network(width, training=False).apply(
      {"params": state.params}, codes, method="decode"
    )
    return gradient_fit.denormalize(state.normalization, x)

  def abstract_state(self, embedding_dim: int) -> RQVAEState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    network = self.network(embedding_dim, training=False)
    variables = jax.eval_shape(
      network.init,
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, embedding_dim), jnp.float32),
    )
    return RQVAEState(
      params=variables["params"],
      normalization=gradient_fit.abstract_normalization(embedding_dim),
    )


def usage_curves(rounds: list[CatalogCheck]) -> dict[str, np.ndarray]:
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
