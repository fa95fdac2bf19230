"""The jitted train steps: many updates a dispatch, batches made on device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from gr_jax.core import checks, permutation, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.models.encoder_decoder import EncoderDecoder, shift_right
from gr_jax.tasks import windows
from gr_jax.training import losses
from gr_jax.training.state import TrainState


@struct.dataclass
class StepMetrics:
  """Means over the steps of one dispatch, float32 []."""

  loss: Any  # nats a target token
  accuracy: Any  # share of target tokens predicted first
  gradient_norm: Any  # before clipping


def example_indices(
  step: jax.Array, key: jax.Array, *, batch_size: int, num_examples: int
) -> jax.Array:
  """Returns which examples the update after `step` earlier ones trains on.

  Every epoch goes through all examples once, in an order of its own; a batch
  may end one epoch and begin the next.

  Args:
    step: int32 [], updates made before.
    key: A typed key, the order's; the same for the whole run.
    batch_size: B.
    num_examples: How many examples an epoch has.

  Returns:
    int32 [B].
  """
  start = step.astype(jnp.uint32) * jnp.uint32(batch_size)
  position = start + jnp.arange(batch_size, dtype=jnp.uint32)  # [B]
  epoch, offset = jnp.divmod(position, jnp.uint32(num_examples))
  keys = jax.vmap(lambda e: permutation.round_keys(jax.random.fold_in(key, e)))(
    epoch
  )  # [B, 6]
  return permutation.permute(offset.astype(jnp.int32), keys, size=num_examples)


def make_train_steps(
  model: EncoderDecoder,
  optimizer: optax.GradientTransformation,
  layout: windows.WindowLayout,
  mesh: Mesh,
  *,
  batch_size: int,
  num_steps: int,
  label_smoothing: float = 0.0,
  shardings: TrainState | None = None,
) -> Callable[
  [TrainState, windows.TrainingData, jax.Array],
  tuple[TrainState, StepMetrics],
]:
  """Returns a jitted function that makes `num_steps` updates.

  Args:
    model: The network.
    optimizer: What turns gradients into updates.
    layout: How examples become tokens.
    mesh: Batches are split over its data axis.
    batch_size: Examples an update, over all devices.
    num_steps: Updates a call.
    label_smoothing: Share of the target probability spread evenly.
    shardings: Where the state's arrays lie, from
      `partition.state_shardings`; None leaves it to the compiler.

  Returns:
    (state, data, key) -> (state, metrics); the state is donated. `key` is the
    run's root key: order and dropout are streams of it, indexed by step.

  Raises:
    InputError: The data axis does not divide the batch.
  """
  mesh_lib.check_batch(mesh, batch_size)
  over_data = mesh_lib.batch_sharding(mesh)
  constrain = jax.lax.with_sharding_constraint
  if shardings is not None:
    in_use = jax.tree.map(mesh_lib.without_data, shardings.params)

  def loss_fn(params, batch, dropout_key):
    if shardings is not None:
      params = constrain(params, in_use)
    logits = model.apply(
      {"params": params},
      batch.inputs,
      shift_right(batch.targets),
      deterministic=False,
      rngs={"dropout": dropout_key},
    )
    terms = losses.token_cross_entropy(
      logits, batch.targets, label_smoothing=label_smoothing
    )
    return terms.loss / jnp.maximum(terms.tokens, 1.0), terms

  def run(state, data, key):
    order_key = rng.stream(key, "order")
    dropout_key = rng.stream(key, "dropout")
    num_examples = data.target_position.shape[0]

    def update(state, _):
      index = example_indices(
        state.step,
        order_key,
        batch_size=batch_size,
        num_examples=num_examples,
      )
      index = constrain(index, over_data)
      batch = constrain(windows.gather_batch(data, index, layout), over_data)
      grads, terms = jax.grad(loss_fn, has_aux=True)(
        state.params, batch, jax.random.fold_in(dropout_key, state.step)
      )
      if shardings is not None:
        grads = constrain(grads, shardings.params)
      updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params
      )
      metrics = StepMetrics(
        loss=terms.loss / terms.tokens,
        accuracy=terms.correct / terms.tokens,
        gradient_norm=optax.tree.norm(grads),
      )
      state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
      )
      return state, metrics

    state, metrics = jax.lax.scan(update, state, length=num_steps)
    return state, jax.tree.map(jnp.mean, metrics)

  if shardings is None:
    return jax.jit(run, donate_argnums=0)
  everywhere = mesh_lib.replicated(mesh)
  return jax.jit(run, donate_argnums=0, out_shardings=(shardings, everywhere))


def check_run_length(num_steps: int, batch_size: int) -> None:
  """Refuses runs whose example count overflows the order's 32 bits.

  Raises:
    InputError: num_steps * batch_size is 2^32 or more.
  """
  if num_steps * batch_size >= 1 << 32:
    raise checks.InputError(
      f"{num_steps=} x {batch_size=} passes 2^32 examples; train less."
    )
