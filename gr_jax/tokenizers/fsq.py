"""Finite scalar quantization: rounding in place of codebooks."""

import dataclasses
import time
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, rng
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  base,
  codebook_training,
  gradient_fit,
  reporting,
  rqvae,
)

# Values a token beyond which no usage is counted while training.
_MOST_COUNTED = 1 << 22


def digits_to_code(
  digits: Int32[Array, "*batch F"], levels: Sequence[int]
) -> Int32[Array, "*batch"]:
  """Numbers integer vectors in mixed radix, the first digit least.

  >>> import jax.numpy as jnp
  >>> digits_to_code(jnp.array([[2, 1]]), (3, 5)).tolist()
  [5]

  Args:
    digits: 0 <= digits[..., i] < levels[i].
    levels: Values per digit.
  """
  weights = np.cumprod([1, *levels[:-1]]).astype(np.int32)
  shape = (1,) * (digits.ndim - 1) + (-1,)
  return jnp.sum(digits * weights.reshape(shape), axis=-1)


def code_to_digits(
  codes: Int32[Array, "*batch"], levels: Sequence[int]
) -> Int32[Array, "*batch F"]:
  """Inverts `digits_to_code`."""
  digits = []
  for size in levels:
    digits.append(codes % size)
    codes = codes // size
  return jnp.stack(digits, axis=-1)


def bound(
  z: Float[Array, "*batch F"], levels: Sequence[int]
) -> Float[Array, "*batch F"]:
  """Maps reals into [0, levels - 1] by a sigmoid, ready to be rounded."""
  shape = (1,) * (z.ndim - 1) + (-1,)
  top = np.asarray(levels, np.float32).reshape(shape) - 1.0
  return top * jax.nn.sigmoid(z)


def round_through(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """Rounds; the gradient passes unchanged."""
  return x + lax.stop_gradient(jnp.round(x) - x)


def to_unit(
  digits: Float[Array, "*batch F"], levels: Sequence[int]
) -> Float[Array, "*batch F"]:
  """Maps 0..levels-1 evenly onto -1..1, what the decoder reads."""
  shape = (1,) * (digits.ndim - 1) + (-1,)
  top = np.asarray(levels, np.float32).reshape(shape) - 1.0
  return 2.0 * digits / np.maximum(top, 1.0) - 1.0


class FSQNetwork(nn.Module):
  """x -> projection -> L sub-vectors -> rounding -> decoder -> x^."""

  embedding_dim: int
  num_tokens: int
  levels: tuple[int, ...]
  hidden_dims: tuple[int, ...]
  sub_dim: int
  dtype: str
  precision: lax.Precision | None = None

  def setup(self) -> None:
    """Makes the projection, W and b of every sub-vector, and the decoder."""
    width = self.num_tokens * self.sub_dim
    self.projection = rqvae.MLP(
      (*self.hidden_dims, width), self.dtype, self.precision
    )
    shape = (self.num_tokens, self.sub_dim, len(self.levels))
    init = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
    self.kernel = self.param("kernel", init, shape)
    self.bias = self.param(
      "bias", nn.initializers.zeros, (self.num_tokens, len(self.levels))
    )
    self.decoder = rqvae.MLP(
      (*self.hidden_dims[::-1], self.embedding_dim), self.dtype, self.precision
    )

  def bounded(self, x: Float[Array, "B D"]) -> Float[Array, "B L F"]:
    """Returns (levels - 1) sigmoid(W x_l + b) of every sub-vector x_l."""
    parts = self.projection(x)
    parts = parts.reshape(-1, self.num_tokens, self.sub_dim)
    z = jnp.einsum(
      "bls,lsf->blf", parts, self.kernel, precision=lax.Precision.HIGHEST
    )
    return bound(z + self.bias[None], self.levels)

  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Returns the reconstruction of a training batch."""
    return self._from_digits(round_through(self.bounded(x)))

  def encode(self, x: Float[Array, "B D"]) -> Int32[Array, "B L"]:
    """Returns one mixed-radix code per sub-vector."""
    digits = jnp.round(self.bounded(x)).astype(jnp.int32)
    return digits_to_code(digits, self.levels)

  def decode(self, codes: Int32[Array, "B L"]) -> Float[Array, "B D"]:
    """Returns the decoder's output for codes."""
    digits = code_to_digits(codes, self.levels)
    return self._from_digits(digits.astype(jnp.float32))

  def _from_digits(self, digits: jax.Array) -> jax.Array:
    values = to_unit(digits, self.levels)
    return self.decoder(values.reshape(values.shape[0], -1))


@dataclasses.dataclass(frozen=True)
class FSQ(gradient_fit.GradientOptions):
  """Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505).

  The projected embedding is split into L sub-vectors; token l numbers, in
  mixed radix, the integers round((levels - 1) * sigmoid(W_l x_l + b_l)), the
  form of RecGPT (arXiv:2506.06270). There are no codebooks; the network
  trains on |x - x^|^2 with straight-through rounding.
  """

  hierarchical: ClassVar[bool] = False
  fits_on_mesh: ClassVar[bool] = True

  num_tokens: int = 3  # L
  levels: tuple[int, ...] = (8, 8, 4)  # per dimension of a sub-vector
  hidden_dims: tuple[int, ...] = (512, 256)  # of the projection; () is linear
  sub_dim: int = 32  # width of a sub-vector before W

  def __post_init__(self):
    """Refuses impossible options."""
    self.check_options()
    checks.check_at_least(1, hidden_dims=self.hidden_dims, sub_dim=self.sub_dim)
    if self.num_tokens < 1 or not self.levels or min(self.levels) < 2:
      raise checks.InputError(
        f"fsq needs num_tokens >= 1 and levels of 2 or more; got "
        f"{self.num_tokens=}, {self.levels=}."
      )
    base.mixed_radix_size("levels", self.levels)

  @property
  def codebook_sizes(self) -> tuple[int, ...]:
    """prod(levels) for every token."""
    size = base.mixed_radix_size("levels", self.levels)
    return (size,) * self.num_tokens

  def network(self, embedding_dim: int, *, training: bool) -> FSQNetwork:
    """Returns the network; when encoding it computes in full float32."""
    return FSQNetwork(
      embedding_dim=embedding_dim,
      num_tokens=self.num_tokens,
      levels=self.levels,
      hidden_dims=self.hidden_dims,
      sub_dim=self.sub_dim,
      dtype=self.compute_dtype if training else "float32",
      precision=None if training else lax.Precision.HIGHEST,
    )

  def loss(self, params, x, *, key):
    """Implements `gradient_fit.Program`."""
    del key
    network = self.network(x.shape[1], training=True)
    total = jnp.mean(jnp.square(x - network.apply({"params": params}, x)))
    return total, ({"loss": total}, ())

  def after_step(self, params, extra, seen):
    """Implements `gradient_fit.Program`: nothing to do."""
    del seen
    return params, extra

  def check(self, params, extra, x, *, key, revive, split=None):
    """Implements `gradient_fit.Program`: usage of the whole catalog."""
    del key, revive
    none = jnp.zeros((self.num_tokens,), jnp.int32)
    if max(self.codebook_sizes) > _MOST_COUNTED:
      return params, extra, codebook_training.CatalogCheck((), none)
    network = self.network(x.shape[1], training=True)
    counts = codebook_training.count_codes(
      lambda params, rows: network.apply(
        {"params": params}, rows, method="encode"
      ),
      params,
      x,
      self.codebook_sizes,
      split=split,
    )
    return params, extra, codebook_training.CatalogCheck(counts, none)

  def alarms(self, seen):
    """Implements `gradient_fit.Program`: unused and overfull codes."""
    return codebook_training.training_alarms(seen)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: gradient_fit.TrainedState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[gradient_fit.TrainedState, base.FitReport]:
    """Trains projection and decoder; `init` gives their first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share rows and batches; None for one.

    Returns:
      The state; curves hold the loss by epoch and the usage by round.

    Raises:
      InputError: See `base.check_fit`; the loss is not finite.
    """
    started = time.monotonic()
    base.check_fit(x, init=init, template=self.abstract_state(x.shape[1]))
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    normalization, rows = gradient_fit.prepare(
      x, standardize=self.standardize, init=init, split=split
    )
    if init is None:
      network = self.network(x.shape[1], training=False)
      params = gradient_fit.init_network(
        network, jnp.zeros((1, x.shape[1])), key=rng.stream(key, "networks")
      )
    else:
      params = jax.tree.map(jnp.array, init.params)  # a copy: it is donated
    outcome = gradient_fit.fit(
      self, params, (), rows, key=key, name="FSQ", split=split
    )
    state = gradient_fit.TrainedState(outcome.params, normalization)
    usage = codebook_training.usage_curves(outcome.rounds)
    return state, reporting.fit_report(
      self, state, x, started=started, curves={**outcome.curves, **usage}
    )

  def encode(
    self,
    state: gradient_fit.TrainedState,
    x: Float[Array | np.ndarray, "B D"],
  ) -> Int32[Array, "B L"]:
    """Returns one mixed-radix code per token."""
    base.check_rows(x, state.normalization.mean.shape[0])
    return gradient_fit.encode_with(self, state, x)

  def decode(
    self,
    state: gradient_fit.TrainedState,
    codes: Int[Array | np.ndarray, "B L"],
  ) -> Float[Array, "B D"]:
    """Returns the decoder's output for codes, in the input's units."""
    base.check_codes(codes, self.codebook_sizes)
    return gradient_fit.decode_with(self, state, jnp.asarray(codes))

  def abstract_state(self, embedding_dim: int) -> gradient_fit.TrainedState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return gradient_fit.abstract_trained(
      self.network(embedding_dim, training=False), embedding_dim
    )
