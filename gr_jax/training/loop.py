"""The one training loop: dispatch, validate, checkpoint, stop early, resume."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh

from gr_jax.core import checks, metric_writer, processes, progress, rng
from gr_jax.tasks import windows
from gr_jax.training import loaders, partition
from gr_jax.training import optimizer as optimizer_lib
from gr_jax.training import step as step_lib
from gr_jax.training.checkpoint import Checkpointer
from gr_jax.training.state import TrainState, init_state


class DivergedError(ArithmeticError):
  """The loss is no longer finite; the last checkpoint is from before."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """What a run minimizes, for how long, and how often it looks.

  Attributes:
    replicas: Networks trained side by side in one program, from the run's
      seed and those after it, on the same semantic IDs. Each keeps its own
      best parameters and equals a run of its own but for rounding.
    learning_rates: One a replica, in place of the optimizer's; () for none.
    dropout_rates: One a replica, in place of the model's; () for none.
    batch_size: Examples an update of one replica, over all devices.
    label_smoothing: Share of the target probability spread evenly.
    num_steps: Updates at most.
    steps_per_dispatch: Updates compiled into one call; metrics are written
      once a call.
    eval_every_steps: Updates between validations, each followed by a
      checkpoint; a multiple of steps_per_dispatch.
    patience: Validations without improvement before a replica's later ones
      count no more; the run stops when that is so of all. 0 never stops.
    selection_metric: The validation metric that picks the best parameters,
      higher is better.
  """

  replicas: int = 1
  learning_rates: tuple[float, ...] = ()
  dropout_rates: tuple[float, ...] = ()
  batch_size: int = 256
  label_smoothing: float = 0.0
  num_steps: int = 10_000
  steps_per_dispatch: int = 100
  eval_every_steps: int = 500
  patience: int = 10
  selection_metric: str = "ndcg@10"

  def __post_init__(self):
    """Refuses periods and lists that do not fit."""
    if self.replicas < 1:
      raise checks.InputError(
        f"training.replicas must be 1 or more; got {self.replicas}."
      )
    for name in ("learning_rates", "dropout_rates"):
      values = getattr(self, name)
      if values and len(values) != self.replicas:
        raise checks.InputError(
          f"training.{name} holds {len(values)} values for "
          f"{self.replicas} replicas; give one each, or none."
        )
    for value in self.learning_rates:
      if value <= 0:
        raise checks.InputError(
          f"training.learning_rates must exceed 0; got {value}."
        )
    for value in self.dropout_rates:
      if not 0 <= value < 1:
        raise checks.InputError(
          f"training.dropout_rates must lie in [0, 1); got {value}."
        )
    for name in ("num_steps", "eval_every_steps"):
      value, unit = getattr(self, name), self.steps_per_dispatch
      if value < 1 or unit < 1 or value % unit:
        raise checks.InputError(
          f"training.{name}={value} must be a positive multiple of "
          f"steps_per_dispatch={unit}."
        )


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a finished run leaves, replica by replica."""

  params: tuple[Any, ...]  # of each replica's best validation
  best_step: tuple[int, ...]
  best_value: tuple[float, ...]
  last_step: int
  seconds: float  # of this process's part of the run


Validate = Callable[[Any], Mapping[str, float]]


def train(
  model: nn.Module,
  loader: loaders.Loader,
  layout: windows.WindowLayout,
  *,
  config: TrainingConfig,
  optimizer_config: optimizer_lib.OptimizerConfig,
  mesh: Mesh,
  keys: jax.Array,
  validate: Validate,
  checkpointer: Checkpointer,
  writer_folder: str,
  stop_requested: Callable[[], bool] = lambda: False,
  rules: Mapping[str, str] = partition.RULES["replicated"],
) -> TrainResult | None:
  """Trains until done, resuming from the newest checkpoint there is.

  Of several processes all call it alike; the first writes the metrics.

  Args:
    model: The network.
    loader: Where batches of `config.batch_size` come from.
    layout: How examples become tokens.
    config: Batch, loss, length and periods.
    optimizer_config: The optimizer's settings.
    mesh: The devices.
    keys: The replicas' root keys, [R].
    validate: One replica's parameters to metrics; must hold
      `selection_metric`.
    checkpointer: Where states are kept.
    writer_folder: Where scalars are written.
    stop_requested: Asked after every dispatch; True on any process saves and
      returns on all.
    rules: Logical axes to mesh axes: how parameters and optimizer are split.

  Returns:
    The result, or None when stopped on request before the end.

  Raises:
    DivergedError: A loss is NaN or infinite; nothing was saved after it.
    InputError: Settings that do not fit, or checkpoints of another run.
  """
  step_lib.check_run_length(config.num_steps, config.batch_size)
  optimizer = optimizer_lib.make_optimizer(optimizer_config, config.num_steps)
  shardings, make_state = planned_state(
    model, optimizer, layout, mesh, rules, keys
  )
  count = config.replicas
  run_steps = step_lib.make_train_steps(
    model,
    optimizer,
    mesh,
    sampler=loader.sampler,
    plan=loader.plan,
    num_steps=config.steps_per_dispatch,
    learning_rates=config.learning_rates
    or [optimizer_config.learning_rate] * count,
    dropout_rates=config.dropout_rates or [model.config.dropout_rate] * count,
    label_smoothing=config.label_smoothing,
    shardings=shardings,
  )
  one_replica = jax.jit(
    lambda params, r: jax.tree.map(lambda p: p[r], params),
    static_argnums=1,
    out_shardings=partition.one_replica(shardings.params),
  )
  state = make_state()
  facts = {
    "best_value": [-math.inf] * count,
    "best_step": [0] * count,
    "stale": [0] * count,
  }
  restored = checkpointer.restore(state)
  if restored is not None:
    state, facts = restored
    loader.restore(facts["loader"])
  step, started = int(state.step), time.perf_counter()
  logging.info("Training from step %d of %d.", step, config.num_steps)
  with (
    _open_writer(writer_folder, step) as writer,
    progress.bar("training", total=config.num_steps, completed=step) as advance,
  ):
    note = ""
    while step < config.num_steps and not _all_done(facts, config):
      before = time.perf_counter()
      state, metrics = run_steps(state, loader.next(), keys)
      if step + config.steps_per_dispatch < config.num_steps:
        loader.prefetch()
      metrics = jax.device_get(metrics)
      rate = config.steps_per_dispatch / (time.perf_counter() - before)
      step += config.steps_per_dispatch
      for loss in metrics.loss:
        if not math.isfinite(loss):
          raise DivergedError(
            f"The loss is {loss} before step {step}; lower "
            "optimizer.learning_rate. The last checkpoint is unharmed."
          )
      scalars = {
        "train/examples_per_second": rate * config.batch_size * count,
      }
      for r in range(count):
        scalars |= {
          _name("train/loss", r, count): float(metrics.loss[r]),
          _name("train/accuracy", r, count): float(metrics.accuracy[r]),
          _name("train/gradient_norm", r, count): float(
            metrics.gradient_norm[r]
          ),
        }
      due = step % config.eval_every_steps == 0 or step == config.num_steps
      if due:
        for r in range(count):
          params = one_replica(state.params, r)
          values = validate(params)
          scalars |= {
            _name(f"validation/{name}", r, count): v
            for name, v in values.items()
          }
          if _judge(facts, r, values[config.selection_metric], step, config):
            checkpointer.save_best(r, step, params)
        best = ", ".join(f"{value:.4f}" for value in facts["best_value"])
        note = f" best {config.selection_metric} {best}"
      if writer is not None:
        writer.write(step, scalars)
      loss = float(metrics.loss.mean())
      advance(config.steps_per_dispatch, note=f"loss {loss:.3f}{note}")
      stopping = processes.any_of(stop_requested())
      if due or stopping:
        checkpointer.save(state, facts | {"loader": loader.state()})
      if stopping:
        logging.info("Stopped on request after step %d; resumable.", step)
        return None
  return TrainResult(
    params=tuple(
      checkpointer.restore_best(r, one_replica(state.params, r))
      for r in range(count)
    ),
    best_step=tuple(facts["best_step"]),
    best_value=tuple(facts["best_value"]),
    last_step=step,
    seconds=time.perf_counter() - started,
  )


def _name(metric: str, replica: int, count: int) -> str:
  """Names a scalar; alone, a replica goes unnumbered."""
  return metric if count == 1 else f"{metric}/replica_{replica}"


def _is_done(facts: dict[str, Any], replica: int, config: TrainingConfig):
  return bool(config.patience) and facts["stale"][replica] >= config.patience


def _all_done(facts: dict[str, Any], config: TrainingConfig) -> bool:
  return all(_is_done(facts, r, config) for r in range(config.replicas))


def _judge(
  facts: dict[str, Any],
  replica: int,
  value: float,
  step: int,
  config: TrainingConfig,
) -> bool:
  """Notes a replica's validation that gave `value`; says if it is its best.

  A replica that ran out of patience would have stopped alone: what it does
  after counts no more.
  """
  if _is_done(facts, replica, config):
    return False
  is_best = value > facts["best_value"][replica]
  if is_best:
    facts["best_value"][replica] = float(value)
    facts["best_step"][replica] = step
    facts["stale"][replica] = 0
  else:
    facts["stale"][replica] += 1
  return is_best


def _open_writer(
  folder: str, step: int
) -> contextlib.AbstractContextManager[metric_writer.MetricWriter | None]:
  """Opens the metrics on the first process, nothing on the others."""
  if not processes.is_first():
    return contextlib.nullcontext()
  return contextlib.closing(metric_writer.MetricWriter(folder, start_step=step))


def planned_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  layout: windows.WindowLayout,
  mesh: Mesh,
  rules: Mapping[str, str],
  keys: jax.Array,
) -> tuple[TrainState, Callable[[], TrainState]]:
  """Returns where the first state will lie, and a function that makes it.

  It is made in place: no device ever holds more than its shards.

  Args:
    model: The network.
    optimizer: Whose state belongs to the parameters.
    layout: Lengths to initialize with.
    mesh: The devices.
    rules: Logical axes to mesh axes.
    keys: The replicas' root keys, [R].

  Raises:
    InputError: A mesh axis that does not divide a parameter's axis.
  """

  def make(keys):
    return init_state(init_params(model, layout, keys=keys), optimizer)

  shapes = jax.eval_shape(make, keys)
  shardings = partition.state_shardings(shapes, mesh, rules)
  return shardings, lambda: jax.jit(make, out_shardings=shardings)(keys)


def init_params(
  model: nn.Module, layout: windows.WindowLayout, *, keys: jax.Array
) -> Any:
  """Returns the networks' initial parameters, float32, leaves [R, ...].

  Args:
    model: The network.
    layout: Lengths to initialize with.
    keys: The replicas' root keys, [R].
  """
  inputs = jnp.ones((1, layout.input_length), jnp.int32)
  targets = jnp.ones((1, layout.target_length), jnp.int32)

  @jax.jit
  @jax.vmap
  def init(key):
    key = rng.stream(key, "init")
    return model.init(key, inputs, targets, deterministic=True)["params"]

  return init(keys)
