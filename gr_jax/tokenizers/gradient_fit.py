"""Fits by gradient: whole epochs in one dispatch on device-resident rows.

A `Program` says what one step minimizes and what happens between rounds of
epochs; this file owns the optimizer, the shuffling and the loop. A round is
`check_every_epochs` epochs, then one look at the hard codes of all rows: one
dispatch, no host synchronization inside.
"""

import dataclasses
import functools
from typing import Any, Protocol, no_type_check, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from gr_jax.core import checks, permutation, progress, rng, row_split
from gr_jax.core import mesh as mesh_lib
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import adamw

Params = Any
Extra = Any  # what a program carries beside its parameters, e.g. EMA averages
Metrics = dict[str, jax.Array]  # scalars
_REVIVE_UNTIL = 0.9  # of all steps; later codes would not settle any more


@dataclasses.dataclass(frozen=True)
class GradientOptions:
  """Options of every tokenizer that is trained by gradient."""

  num_epochs: int = 500
  batch_size: int = 1024
  learning_rate: float = 1e-3  # peak of a cosine after a linear warmup
  warmup_share: float = 0.05  # of all steps
  weight_decay: float = 1e-4  # AdamW's, on weight matrices only
  standardize: bool = True  # zero mean, unit variance per input dimension
  compute_dtype: str = "float32"  # of the networks; codes are always float32
  check_every_epochs: int = 10  # revival and alarms on the whole catalog

  def check_options(self) -> None:
    """Refuses impossible values by name.

    Raises:
      InputError: Some option is out of range.
    """
    checks.check_at_least(
      1,
      num_epochs=self.num_epochs,
      batch_size=self.batch_size,
      check_every_epochs=self.check_every_epochs,
    )
    checks.check_at_least(
      0, warmup_share=self.warmup_share, weight_decay=self.weight_decay
    )
    if not self.learning_rate > 0:
      raise checks.InputError(f"{self.learning_rate=}; want > 0.")
    checks.check_known(
      self.compute_dtype, ("float32", "bfloat16"), "compute_dtype"
    )

  def alarms(self, seen: Any) -> dict[str, str]:
    """Returns what is wrong after a round, by a name each; see `Program`."""
    del seen
    return {}


@runtime_checkable
class Program(Protocol):
  """What is trained. Hashable and compared by value: it is a static argument.

  It also has the fields of GradientOptions.
  """

  def loss(
    self, params: Params, x: Float[Array, "B D"], *, key: jax.Array
  ) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """Returns the loss of a batch, metrics, and what `after_step` reads."""
    ...

  def after_step(
    self, params: Params, extra: Extra, seen: Any
  ) -> tuple[Params, Extra]:
    """Changes parameters outside the gradient, e.g. EMA codebooks."""
    ...

  def check(
    self,
    params: Params,
    extra: Extra,
    x: Float[Array, "N D"],
    *,
    key: jax.Array,
    revive: jax.Array,
  ) -> tuple[Params, Extra, Any]:
    """Looks at all rows after a round; returns a pytree for the report."""
    ...

  def alarms(self, seen: Any) -> dict[str, str]:
    """Returns a line for each thing wrong in what `check` returned, by name.

    A line is logged while training goes on, the first time that its name
    comes up.
    """
    ...


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class FitState:
  """Everything that training changes."""

  step: jax.Array  # int32 []
  params: Params
  moments: adamw.Moments
  extra: Extra


@no_type_check
@struct.dataclass
class Normalization:
  """Affine map of the inputs, part of a tokenizer's state."""

  mean: jax.Array  # float32 [D]
  scale: jax.Array  # float32 [D], > 0


@no_type_check
@struct.dataclass
class TrainedState:
  """State of a tokenizer trained by gradient."""

  params: Any  # float32 leaves
  normalization: Normalization


def prepare(
  x: Float[Array | np.ndarray, "N D"],
  *,
  standardize: bool,
  init: TrainedState | None,
  split: RowSplit | None = None,
) -> tuple[Normalization, Float[Array, "M D"]]:
  """Returns the normalization and all rows after it, on the devices.

  Args:
    x: All rows.
    standardize: See `fit_normalization`.
    init: A warm start keeps its normalization, so that its networks see what
      they know.
    split: How the rows shall lie on several devices.
  """
  rows = jnp.asarray(x) if split is None else split.place(x)
  if init is None:
    normalization = fit_normalization(
      rows, standardize=standardize, split=split
    )
  else:
    normalization = jax.tree.map(jnp.array, init.normalization)
  if split is None:
    return normalization, normalize(normalization, rows)
  rows = normalize(split.copy(normalization), rows)
  return split.whole(normalization), rows


@functools.partial(jax.jit, static_argnames=("standardize", "split"))
def fit_normalization(
  x: Float[Array, "N D"], *, standardize: bool, split: RowSplit | None = None
) -> Normalization:
  """Measures mean and standard deviation; a constant dimension keeps scale 1.

  Args:
    x: All rows.
    standardize: False for the identity map.
    split: How the rows lie on several devices.
  """
  if not standardize:
    return Normalization(jnp.zeros((x.shape[1],)), jnp.ones((x.shape[1],)))
  moments = functools.partial(_moments, split=split)
  if split is not None:
    moments = split.run(moments, takes_rows=(True,))
  mean, std = moments(x)
  # Rounding gives a constant dimension a tiny spread, which must not be blown
  # up to one.
  constant = std <= 1e-6 * jnp.maximum(1.0, jnp.abs(mean))
  return Normalization(mean, jnp.where(constant, 1.0, std))


def _moments(
  x: jax.Array, *, split: RowSplit | None
) -> tuple[jax.Array, jax.Array]:
  """Returns mean and standard deviation [D] of one device's and all rows."""
  if split is None:
    return jnp.mean(x, axis=0), jnp.std(x, axis=0)
  mean = row_split.total(split, jnp.sum(x, axis=0)) / split.num_rows
  off = jnp.where(split.is_row()[:, None], x - mean[None, :], 0.0)
  squares = row_split.total(split, jnp.sum(jnp.square(off), axis=0))
  return mean, jnp.sqrt(squares / split.num_rows)


@jax.jit
def normalize(
  normalization: Normalization, x: Float[Array | np.ndarray, "B D"]
) -> Float[Array, "B D"]:
  """Maps rows to what the network reads."""
  return (x - normalization.mean[None, :]) / normalization.scale[None, :]


@jax.jit
def denormalize(
  normalization: Normalization, x: Float[Array, "B D"]
) -> Float[Array, "B D"]:
  """Maps the network's output back to rows."""
  return x * normalization.scale[None, :] + normalization.mean[None, :]


def abstract_normalization(embedding_dim: int) -> Normalization:
  """Returns the shapes of a Normalization."""
  row = jax.ShapeDtypeStruct((embedding_dim,), jnp.float32)
  return Normalization(mean=row, scale=row)


def abstract_trained(network: nn.Module, embedding_dim: int) -> TrainedState:
  """Returns the shapes of a network's TrainedState.

  Args:
    network: Called on rows [B, D] of this width.
    embedding_dim: D.

  Raises:
    InputError: D is 0.
  """
  checks.check_at_least(1, embedding_dim=embedding_dim)
  variables = jax.eval_shape(
    network.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, embedding_dim), jnp.float32),
  )
  return TrainedState(
    params=variables["params"],
    normalization=abstract_normalization(embedding_dim),
  )


@functools.partial(jax.jit, static_argnames="network")
def init_network(
  network: nn.Module, x: Float[Array, "B D"], *, key: jax.Array
) -> Params:
  """Draws a network's parameters; compiled once per configuration."""
  return network.init(key, x)["params"]


@functools.partial(jax.jit, static_argnames=("network", "method"))
def apply_network(
  network: nn.Module, params: Params, x: Float[Array, "B D"], *, method: str
) -> Any:
  """Calls a method of a network; compiled once per configuration."""
  return network.apply({"params": params}, x, method=method)


@functools.partial(jax.jit, static_argnames="tokenizer")
def encode_with(
  tokenizer: Any, state: TrainedState, x: Float[Array | np.ndarray, "B D"]
) -> Array:
  """Applies `tokenizer.network(...).encode` to normalized rows.

  Args:
    tokenizer: Has `network(embedding_dim, training=False)`; static.
    state: Its state.
    x: Rows.
  """
  x = normalize(state.normalization, x)
  network = tokenizer.network(x.shape[1], training=False)
  return network.apply({"params": state.params}, x, method="encode")


@functools.partial(jax.jit, static_argnames="tokenizer")
def decode_with(tokenizer: Any, state: TrainedState, codes: Array) -> Array:
  """Applies `tokenizer.network(...).decode`, back in the input's units.

  Args:
    tokenizer: Has `network(embedding_dim, training=False)`; static.
    state: Its state.
    codes: What its network's `decode` takes.
  """
  network = tokenizer.network(state.normalization.mean.shape[0], training=False)
  x = network.apply({"params": state.params}, codes, method="decode")
  return denormalize(state.normalization, x)


@jax.jit
def start_state(params: Params, extra: Extra) -> FitState:
  """Returns the state before the first step.

  Args:
    params: Where to start.
    extra: What the program carries beside.
  """
  return FitState(jnp.int32(0), params, adamw.start(params), extra)


def num_steps(program: Program, num_rows: int) -> tuple[int, int]:
  """Returns the batch size used and the steps of an epoch.

  A batch never exceeds the rows; the rows that do not fill a batch are left
  out of an epoch, others in each.
  """
  batch_size = min(program.batch_size, num_rows)
  return batch_size, num_rows // batch_size


@functools.partial(
  jax.jit, static_argnames=("program", "split"), donate_argnames="state"
)
def train_round(
  state: FitState,
  x: Float[Array, "N D"],
  key: jax.Array,
  num_epochs: jax.Array,
  *,
  program: Program,
  split: RowSplit | None = None,
) -> tuple[FitState, tuple[Metrics, Any]]:
  """Trains `num_epochs` epochs, then checks the whole catalog.

  Args:
    state: Before; donated.
    x: All rows, normalized.
    key: Random key of the fit; epochs and steps fold their number into it.
    num_epochs: int32 [], at most `program.check_every_epochs`.
    program: What is trained.
    split: How the rows lie on several devices; then batches are split too,
      where their size allows, and parameters are copies.

  Returns:
    The state, then each metric's mean by epoch (NaN past `num_epochs`) and
    what `program.check` returned.
  """
  num_rows = x.shape[0] if split is None else split.num_rows
  batch_size, steps = num_steps(program, num_rows)
  total_steps = program.num_epochs * steps
  order_key, step_key = rng.stream(key, "order"), rng.stream(key, "step")
  check_key = rng.stream(key, "check")

  def step(state: FitState, inputs):
    number, rows, rate = inputs
    batch = x[rows]
    if split is not None and batch_size % mesh_lib.row_parts(split.mesh) == 0:
      batch = lax.with_sharding_constraint(
        batch, mesh_lib.batch_sharding(split.mesh)
      )
    gradient, (metrics, seen) = jax.grad(program.loss, has_aux=True)(
      state.params, batch, key=jax.random.fold_in(step_key, number)
    )
    params, moments = adamw.update(
      state.params,
      gradient,
      state.moments,
      rate,
      weight_decay=program.weight_decay,
    )
    params, extra = program.after_step(params, state.extra, seen)
    after = FitState(state.step, params, moments, extra)
    # One array, so that one kernel writes all metrics of a step.
    return after, jnp.stack([metrics[name] for name in sorted(metrics)])

  def epoch(state: FitState):
    number = state.step // steps
    keys = permutation.round_keys(jax.random.fold_in(order_key, number))
    # Everything that does not depend on the parameters is computed for a whole
    # epoch at once, not in every step.
    order = permutation.permute(
      jnp.arange(steps * batch_size, dtype=jnp.int32), keys, size=num_rows
    )
    numbers = state.step + jnp.arange(steps, dtype=jnp.int32)
    rates = adamw.rates(
      numbers,
      peak=program.learning_rate,
      warmup_steps=int(program.warmup_share * total_steps),
      num_steps=total_steps,
    )
    state, metrics = lax.scan(
      step, state, (numbers, order.reshape(steps, batch_size), rates)
    )
    state = state.replace(step=state.step + steps)
    return state, jnp.mean(metrics, axis=0)  # [metrics]

  _, (metrics, _) = jax.eval_shape(
    functools.partial(program.loss, key=step_key),
    state.params,
    jax.ShapeDtypeStruct((batch_size, x.shape[1]), x.dtype),
  )
  names = sorted(metrics)
  curves = jnp.full(
    (program.check_every_epochs, len(names)), jnp.nan, jnp.float32
  )

  def body(i: jax.Array, carry):
    state, curves = carry
    state, metrics = epoch(state)
    return state, curves.at[i].set(metrics)

  state, curves = lax.fori_loop(0, num_epochs, body, (state, curves))
  params, extra, seen = program.check(
    state.params,
    state.extra,
    x,
    key=jax.random.fold_in(check_key, state.step),
    revive=state.step < int(_REVIVE_UNTIL * total_steps),
    **({} if split is None else {"split": split}),
  )
  curves = {name: curves[:, column] for column, name in enumerate(names)}
  return state.replace(params=params, extra=extra), (curves, seen)


@dataclasses.dataclass(frozen=True)
class FitOutcome:
  """What `fit` returns."""

  params: Params
  curves: dict[str, np.ndarray]  # metric by epoch
  rounds: list[Any]  # what `program.check` returned, host arrays


def fit(
  program: Program,
  params: Params,
  extra: Extra,
  x: Float[Array, "N D"],
  *,
  key: jax.Array,
  name: str,
  split: RowSplit | None = None,
) -> FitOutcome:
  """Trains for `program.num_epochs` epochs.

  Args:
    program: What is trained.
    params: Where to start; donated.
    extra: What the program carries beside; donated.
    x: All rows, normalized, on the device.
    key: Random key.
    name: Shown on the progress bar.
    split: How the rows lie on several devices. The program's `check` then
      takes it, too.

  Raises:
    InputError: The loss became NaN or infinite.
  """
  state = start_state(params, extra)
  if split is not None:
    state = split.copy(state)
  key = rng.stream(key, "gradient_fit")
  curves, rounds, waiting, alarmed = [], [], None, set()

  def collect(waiting) -> None:
    count, result = waiting
    epochs, seen = jax.device_get(result)
    curves.append({n: c[:count] for n, c in epochs.items()})
    rounds.append(seen)
    if not np.isfinite(curves[-1]["loss"]).all():
      raise checks.InputError(
        f"The loss of {name} is not finite after epoch "
        f"{sum(len(c['loss']) for c in curves)}; lower "
        f"learning_rate={program.learning_rate} or set standardize=True."
      )
    alarms = program.alarms(seen)
    epoch = sum(len(c["loss"]) for c in curves)
    for alarm in alarms.keys() - alarmed:
      logging.warning("%s, epoch %d: %s", name, epoch, alarms[alarm])
    alarmed.update(alarms)
    advance(count, note=f"loss {curves[-1]['loss'][-1]:.4f}")

  with progress.bar(name, total=program.num_epochs, unit="epoch") as advance:
    for start in range(0, program.num_epochs, program.check_every_epochs):
      count = min(program.check_every_epochs, program.num_epochs - start)
      state, result = train_round(
        state, x, key, jnp.int32(count), program=program, split=split
      )
      # One round behind, so that the device never waits for the host.
      if waiting is not None:
        collect(waiting)
      waiting = (count, result)
    collect(waiting)
  params = state.params
  if split is not None:
    params = split.whole(params)
  return FitOutcome(
    params=params,
    curves={n: np.concatenate([c[n] for c in curves]) for n in curves[0]},
    rounds=rounds,
  )
