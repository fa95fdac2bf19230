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
from jax.sharding import Mesh

from gr_jax.core import checks, metric_writer, processes, progress, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.models.encoder_decoder import EncoderDecoder
from gr_jax.tasks import windows
from gr_jax.training import optimizer as optimizer_lib
from gr_jax.training import partition
from gr_jax.training import step as step_lib
from gr_jax.training.checkpoint import Checkpointer
from gr_jax.training.state import TrainState, init_state


class DivergedError(ArithmeticError):
  """The loss is no longer finite; the last checkpoint is from before."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """What a run minimizes, for how long, and how often it looks.

  Attributes:
    batch_size: Examples an update, over all devices.
    label_smoothing: Share of the target probability spread evenly.
    num_steps: Updates at most.
    steps_per_dispatch: Updates compiled into one call; metrics are written
      once a call.
    eval_every_steps: Updates between validations, each followed by a
      checkpoint; a multiple of steps_per_dispatch.
    patience: Validations without improvement before stopping; 0 never stops.
    selection_metric: The validation metric that picks the best parameters,
      higher is better.
  """

  batch_size: int = 256
  label_smoothing: float = 0.0
  num_steps: int = 10_000
  steps_per_dispatch: int = 100
  eval_every_steps: int = 500
  patience: int = 10
  selection_metric: str = "ndcg@10"

  def __post_init__(self):
    """Refuses periods that do not fit into each other."""
    for name in ("num_steps", "eval_every_steps"):
      value, unit = getattr(self, name), self.steps_per_dispatch
      if value < 1 or unit < 1 or value % unit:
        raise checks.InputError(
          f"training.{name}={value} must be a positive multiple of "
          f"steps_per_dispatch={unit}."
        )


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a finished run leaves."""

  params: Any  # of the best validation
  best_step: int
  best_value: float
  last_step: int
  seconds: float  # of this process's part of the run


Validate = Callable[[Any], Mapping[str, float]]


def train(
  model: EncoderDecoder,
  data: windows.TrainingData,
  layout: windows.WindowLayout,
  *,
  config: TrainingConfig,
  optimizer_config: optimizer_lib.OptimizerConfig,
  mesh: Mesh,
  key: jax.Array,
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
    data: Device-resident interactions and example indices.
    layout: How examples become tokens.
    config: Batch, loss, length and periods.
    optimizer_config: AdamW's settings.
    mesh: The devices.
    key: The run's root key.
    validate: Parameters to metrics; must hold `selection_metric`.
    checkpointer: Where states are kept.
    writer_folder: Where scalars are written.
    stop_requested: Asked after every dispatch; True on any process saves and
      returns on all.
    rules: Logical axes to mesh axes: how parameters and optimizer are split.

  Returns:
    The result, or None when stopped on request before the end.

  Raises:
    DivergedError: The loss is NaN or infinite; nothing was saved after it.
    InputError: Settings that do not fit, or checkpoints of another run.
  """
  step_lib.check_run_length(config.num_steps, config.batch_size)
  if data.target_position.shape[0] == 0:
    raise checks.InputError(
      "No training examples: every user has too few items before the last two."
    )
  optimizer = optimizer_lib.make_optimizer(optimizer_config, config.num_steps)
  shardings, make_state = planned_state(
    model, optimizer, layout, mesh, rules, key
  )
  run_steps = step_lib.make_train_steps(
    model,
    optimizer,
    layout,
    mesh,
    batch_size=config.batch_size,
    num_steps=config.steps_per_dispatch,
    label_smoothing=config.label_smoothing,
    shardings=shardings,
  )
  data = mesh_lib.place(data, mesh_lib.replicated(mesh))
  state = make_state()
  facts = {"best_value": -math.inf, "best_step": 0, "stale": 0, "done": False}
  restored = checkpointer.restore(state)
  if restored is not None:
    state, facts = restored
  step, started = int(state.step), time.perf_counter()
  logging.info("Training from step %d of %d.", step, config.num_steps)
  with (
    _open_writer(writer_folder, step) as writer,
    progress.bar("training", total=config.num_steps, completed=step) as advance,
  ):
    note = ""
    while step < config.num_steps and not facts["done"]:
      before = time.perf_counter()
      state, metrics = run_steps(state, data, key)
      metrics = jax.tree.map(float, jax.device_get(metrics))
      rate = config.steps_per_dispatch / (time.perf_counter() - before)
      step += config.steps_per_dispatch
      if not math.isfinite(metrics.loss):
        raise DivergedError(
          f"The loss is {metrics.loss} before step {step}; lower "
          "optimizer.learning_rate. The last checkpoint is unharmed."
        )
      scalars = {
        "train/loss": metrics.loss,
        "train/accuracy": metrics.accuracy,
        "train/gradient_norm": metrics.gradient_norm,
        "train/examples_per_second": rate * config.batch_size,
      }
      due = step % config.eval_every_steps == 0 or step == config.num_steps
      if due:
        values = validate(state.params)
        scalars |= {f"validation/{name}": v for name, v in values.items()}
        facts = _judge(facts, values[config.selection_metric], step, config)
        if facts["best_step"] == step:
          checkpointer.save_best(state)
        note = f" best {config.selection_metric} {facts['best_value']:.4f}"
      if writer is not None:
        writer.write(step, scalars)
      advance(config.steps_per_dispatch, note=f"loss {metrics.loss:.3f}{note}")
      stopping = processes.any_of(stop_requested())
      if due or stopping:
        checkpointer.save(state, facts)
      if stopping:
        logging.info("Stopped on request after step %d; resumable.", step)
        return None
  best_step, best_params = checkpointer.restore_best(state.params)
  return TrainResult(
    params=best_params,
    best_step=best_step,
    best_value=facts["best_value"],
    last_step=step,
    seconds=time.perf_counter() - started,
  )


def _judge(
  facts: dict[str, Any], value: float, step: int, config: TrainingConfig
) -> dict[str, Any]:
  """Returns the run's facts after a validation that gave `value`."""
  if value > facts["best_value"]:
    return facts | {
      "best_value": float(value),
      "best_step": step,
      "stale": 0,
    }
  stale = facts["stale"] + 1
  done = bool(config.patience) and stale >= config.patience
  return facts | {"stale": stale, "done": done}


def _open_writer(
  folder: str, step: int
) -> contextlib.AbstractContextManager[metric_writer.MetricWriter | None]:
  """Opens the metrics on the first process, nothing on the others."""
  if not processes.is_first():
    return contextlib.nullcontext()
  return contextlib.closing(metric_writer.MetricWriter(folder, start_step=step))


def planned_state(
  model: EncoderDecoder,
  optimizer: optax.GradientTransformation,
  layout: windows.WindowLayout,
  mesh: Mesh,
  rules: Mapping[str, str],
  key: jax.Array,
) -> tuple[TrainState, Callable[[], TrainState]]:
  """Returns where the first state will lie, and a function that makes it.

  It is made in place: no device ever holds more than its shards.

  Args:
    model: The network.
    optimizer: Whose state belongs to the parameters.
    layout: Lengths to initialize with.
    mesh: The devices.
    rules: Logical axes to mesh axes.
    key: The run's root key.

  Raises:
    InputError: A mesh axis that does not divide a parameter's axis.
  """

  def make(k):
    return init_state(init_params(model, layout, key=k), optimizer)

  shapes = jax.eval_shape(make, key)
  shardings = partition.state_shardings(shapes, mesh, rules)
  return shardings, lambda: jax.jit(make, out_shardings=shardings)(key)


def init_params(
  model: EncoderDecoder, layout: windows.WindowLayout, *, key: jax.Array
) -> Any:
  """Returns the network's initial parameters, float32."""
  inputs = jnp.ones((1, layout.input_length), jnp.int32)
  targets = jnp.ones((1, layout.target_length), jnp.int32)
  init = jax.jit(lambda k: model.init(k, inputs, targets, deterministic=True))
  return init(rng.stream(key, "init"))["params"]
