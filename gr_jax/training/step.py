"""The jitted train steps: many updates a dispatch, batches made on device.

R replicas (seeds, learning rates, dropout rates) train side by side in one
program, as `vmap` over a leading axis: the models of this field are so small
that one alone leaves an accelerator idle.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from gr_jax.core import checks, permutation, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.models.encoder_decoder import shift_right
from gr_jax.tasks import neighbors, packing, windows
from gr_jax.training import losses, partition
from gr_jax.training import optimizer as optimizer_lib
from gr_jax.training.state import TrainState


@struct.dataclass
class StepMetrics:
  """Means over the steps of one dispatch, float32 [R].

  Target tokens weigh as `losses` says; a direct path is half of them.
  """

  loss: Any  # nats a target token
  accuracy: Any  # share of target tokens predicted first
  gradient_norm: Any  # before clipping


def example_indices(
  step: jax.Array, key: jax.Array, *, batch_size: int, strata: packing.Strata
) -> jax.Array:
  """Returns which examples the update after `step` earlier ones trains on.

  A batch holds equally many examples of every stratum. Every epoch of a
  stratum goes through all of its examples once, in an order of its own; a
  batch may end one epoch and begin the next.

  Args:
    step: int32 [], updates made before.
    key: A typed key, the order's; the same for the whole run.
    batch_size: B, a multiple of the number of strata.
    strata: Of the examples, sorted by length.

  Returns:
    int32 [B], stratum by stratum.
  """
  share = batch_size // strata.count
  found = []
  # Strata come in two sizes at most, and a permutation's size is static.
  for size in sorted(set(strata.sizes.tolist()), reverse=True):
    chosen = np.flatnonzero(strata.sizes == size)
    first = step.astype(jnp.uint32) * jnp.uint32(share)
    position = first + jnp.arange(share, dtype=jnp.uint32)  # [share]
    epoch, offset = jnp.divmod(position, jnp.uint32(size))

    def permuted(stratum, start, epoch=epoch, offset=offset, size=size):
      own = jax.random.fold_in(key, stratum)
      keys = jax.vmap(
        lambda e: permutation.round_keys(jax.random.fold_in(own, e))
      )(epoch)  # [share, 6]
      offset = offset.astype(jnp.int32)
      return start + permutation.permute(offset, keys, size=size)

    found.append(
      jax.vmap(permuted)(
        jnp.asarray(chosen, jnp.uint32),
        jnp.asarray(strata.starts[chosen], jnp.int32),
      ).reshape(-1)
    )
  return jnp.concatenate(found)


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceSampler:
  """Cuts each step's batch from data in device memory.

  Attributes:
    layout: How examples become tokens.
    strata: Of the data's examples, sorted by length.
    plan: How a batch is packed; None for not at all.
    batch_size: Examples an update of one replica.
    neighbor_share: Targets drawn from the data's neighbors.
    history_cut_rate: Probability that an item of a packed example begins a
      history of its own.
  """

  layout: windows.WindowLayout
  strata: packing.Strata
  plan: packing.PackPlan | None
  batch_size: int
  neighbor_share: float = 0.0
  history_cut_rate: float = 0.0

  def indices(self, steps: jax.Array, order_keys: jax.Array) -> jax.Array:
    """Returns the examples of some steps [n] and all replicas: [n, R, B]."""

    def one(step, key):
      return example_indices(
        step, key, batch_size=self.batch_size, strata=self.strata
      )

    of_step = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(of_step, in_axes=(0, None))(steps, order_keys)

  def cut(
    self, data: windows.TrainingData, index: jax.Array, key: jax.Array
  ) -> windows.Batch:
    """Returns the batch of some examples [B]; `key` augments them."""
    retarget = None
    if self.neighbor_share:
      retarget = functools.partial(
        neighbors.draw,
        rng.stream(key, "neighbors"),
        data.neighbors,
        share=self.neighbor_share,
      )
    batch = windows.gather_batch(data, index, self.layout, retarget)
    if self.plan is None:
      return batch
    batch = packing.pack(batch, self.plan)
    if not self.history_cut_rate:
      return batch
    return batch.replace(
      input_segments=packing.cut_histories(
        rng.stream(key, "cuts"),
        jnp.asarray(self.plan.input_segments),
        num_levels=self.layout.num_levels,
        rate=self.history_cut_rate,
      )
    )


def make_train_steps(
  model: nn.Module,
  optimizer: optax.GradientTransformationExtraArgs,
  mesh: Mesh,
  *,
  num_steps: int,
  learning_rates: Sequence[float],
  dropout_rates: Sequence[float],
  sampler: DeviceSampler | None = None,
  plan: packing.PackPlan | None = None,
  label_smoothing: float = 0.0,
  shardings: TrainState | None = None,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, StepMetrics]]:
  """Returns a jitted function that makes `num_steps` updates.

  Args:
    model: The network.
    optimizer: What turns gradients into updates.
    mesh: Rows of a batch, or replicas, are split over its data axis.
    num_steps: Updates a call.
    learning_rates: Peak of each replica; their number is R.
    dropout_rates: Of each replica.
    sampler: What cuts batches; None where they come from the host.
    plan: How batches from the host were packed; None for not at all.
    label_smoothing: Share of the target probability spread evenly.
    shardings: Where the state's arrays lie, from
      `partition.state_shardings`; None leaves it to the compiler.

  Returns:
    (state, data, keys [R]) -> (state, metrics); the state is donated. `data`
    is what the sampler cuts from, or without one a `Batch` of leaves
    [num_steps, R, ...]. `keys` are the replicas' root keys: order, dropout and
    augmentation are streams of them, indexed by step.
  """
  constrain = jax.lax.with_sharding_constraint
  placed = mesh_lib.batch_sharding(mesh, axis=1)
  if shardings is not None:
    in_use = jax.tree.map(mesh_lib.without_data, shardings.params)
    if partition.splits_replicas(shardings.params):
      placed, in_use = mesh_lib.batch_sharding(mesh), shardings.params
  plan = sampler.plan if sampler is not None else plan
  learning_rates = np.asarray(learning_rates, np.float32)  # [R]
  dropout_rates = np.asarray(dropout_rates, np.float32)  # [R]

  cross_entropy = losses.token_cross_entropy
  if model.reads_items:
    cross_entropy = functools.partial(
      losses.level_cross_entropy, code_ranges=model.code_ranges
    )

  def loss_fn(params, batch, dropout_key, dropout_rate):
    segments = {}
    if plan is not None:
      segments = {
        "input_segment_ids": jnp.asarray(plan.input_segments),
        "decoder_segment_ids": jnp.asarray(plan.target_segments),
      }
      if batch.input_segments is not None:
        segments["input_segment_ids"] = batch.input_segments
    logits = model.apply(
      {"params": params},
      batch.inputs,
      shift_right(batch.targets, segments.get("decoder_segment_ids")),
      deterministic=not dropout_rates.any(),
      dropout_rate=dropout_rate,
      rngs={"dropout": dropout_key},
      **segments,
    )
    terms = cross_entropy(
      logits, batch.targets, label_smoothing=label_smoothing
    )
    return terms.loss / jnp.maximum(terms.tokens, 1.0), terms

  def stream_keys(keys, name):
    return jax.vmap(lambda key: rng.stream(key, name))(keys)

  def run(state, data, keys):
    dropout_keys = stream_keys(keys, "dropout")
    augmentation_keys = stream_keys(keys, "augmentation")

    def at_step(keys, state):
      return jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)

    def update(state, batch):
      if sampler is not None:
        batch = jax.vmap(sampler.cut, in_axes=(None, 0, 0))(
          data, batch, at_step(augmentation_keys, state)
        )
      batch = constrain(batch, placed)  # [R, rows, ...]
      params = state.params
      if shardings is not None:
        params = constrain(params, in_use)
      grads, terms = jax.vmap(jax.grad(loss_fn, has_aux=True))(
        params,
        batch,
        at_step(dropout_keys, state),
        jnp.asarray(dropout_rates),
      )
      if shardings is not None:
        grads = constrain(grads, shardings.params)
      updates, opt_state = jax.vmap(
        lambda g, s, p, rate: optimizer.update(g, s, p, learning_rate=rate)
      )(grads, state.opt_state, state.params, jnp.asarray(learning_rates))
      metrics = StepMetrics(
        loss=terms.loss / terms.tokens,
        accuracy=terms.correct / terms.tokens,
        gradient_norm=jax.vmap(optimizer_lib.global_norm)(grads),
      )
      state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
      )
      return state, metrics

    batches = data
    if sampler is not None:
      # All at once: permuting loops, and every round of it is a launch.
      steps = state.step + jnp.arange(num_steps, dtype=jnp.int32)
      batches = sampler.indices(steps, stream_keys(keys, "order"))
    state, metrics = jax.lax.scan(update, state, batches, length=num_steps)
    return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

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
