"""The optimizer: AdamW or Adafactor, clipping, a schedule; from a dataclass."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gr_jax.core import checks

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("cosine", "rsqrt", "constant", "t5")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What turns gradients into updates, and how fast.

  Attributes:
    name: "adamw" (Loshchilov and Hutter 2019, arXiv:1711.05101) or "adafactor"
      (Shazeer and Stern 2018, arXiv:1804.04235, Algorithms 4 and 5: no first
      moment, updates as large as the parameter they change times the rate),
      T5's.
    learning_rate: Its peak. Adafactor's is relative: T5's .01 is ten times
      what AdamW bears.
    schedule: After a linear warmup "cosine" to 0 at the last step, "rsqrt"
      (peak * sqrt(warmup / step)) or "constant"; "t5" (arXiv:1910.10683,
      section 3.1.2) is "rsqrt" with the peak from the first step on.
    warmup_steps: Steps of linear increase from 0; of the peak under "t5".
    weight_decay: Decoupled decay of matrices; scales and biases are spared.
    clip_norm: Largest global norm of the gradient; 0 turns clipping off.
    b1: Decay of AdamW's first moment.
    b2: Decay of AdamW's second moment.
  """

  name: str = "adamw"
  learning_rate: float = 1e-3
  schedule: str = "cosine"
  warmup_steps: int = 500
  weight_decay: float = 1e-2
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999

  def __post_init__(self):
    """Refuses settings that cannot train."""
    checks.check_known(self.name, OPTIMIZERS, "optimizer.name")
    checks.check_known(self.schedule, SCHEDULES, "schedule")
    if self.learning_rate <= 0 or self.warmup_steps < 1:
      raise checks.InputError(
        "The optimizer needs learning_rate > 0 and warmup_steps >= 1; got "
        f"learning_rate={self.learning_rate}, "
        f"warmup_steps={self.warmup_steps}."
      )


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Returns step -> learning rate.

  Args:
    config: The optimizer's settings.
    num_steps: Length of the run, where the cosine ends.

  Raises:
    InputError: A warmup as long as the run.
  """
  if config.warmup_steps >= num_steps:
    raise checks.InputError(
      f"warmup_steps={config.warmup_steps} must be below {num_steps=}."
    )
  peak, warmup = config.learning_rate, config.warmup_steps
  rise = optax.linear_schedule(0.0, peak, warmup)
  if config.schedule == "t5":
    rise = optax.constant_schedule(peak)
  match config.schedule:
    case "cosine":
      rest = optax.cosine_decay_schedule(peak, num_steps - warmup)
    case "rsqrt" | "t5":

      def rest(step):
        return peak * (warmup / (step + warmup)) ** 0.5

    case _:
      rest = optax.constant_schedule(peak)
  return optax.join_schedules([rise, rest], [warmup])


def global_norm(tree: Any) -> Float[Array, ""]:
  """Returns the length of all arrays as one vector.

  Arrays of one shape are summed together: a small network has a hundred, and
  of a kernel or two each, starting it is most of its time.
  """
  by_shape = collections.defaultdict(list)
  for leaf in jax.tree.leaves(tree):
    by_shape[leaf.shape].append(leaf.astype(jnp.float32))
  sums = [jnp.sum(jnp.square(jnp.stack(same))) for same in by_shape.values()]
  return jnp.sqrt(sum(sums, start=jnp.float32(0.0)))


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm` with the norm above."""

  def update(updates, state, params=None):
    del params
    norm = global_norm(updates)
    factor = jnp.where(norm < most, 1.0, most / norm)
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

  return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """Returns the optax chain: clip, direction, decoupled decay, schedule.

  Its `update` takes a `learning_rate` too, float32 [], in place of the
  config's, so that replicas of one program can differ in it.

  Args:
    config: The optimizer's settings.
    num_steps: Length of the run, for the schedule.

  Raises:
    InputError: As `make_schedule`.
  """
  if config.name == "adafactor":
    direction = optax.chain(
      optax.scale_by_factored_rms(),
      optax.clip_by_block_rms(1.0),
      optax.scale_by_param_block_rms(),
    )
  else:
    direction = optax.scale_by_adam(b1=config.b1, b2=config.b2)
  schedule = make_schedule(
    dataclasses.replace(config, learning_rate=1.0), num_steps
  )
  chain = optax.chain(
    clip_by_global_norm(config.clip_norm)
    if config.clip_norm
    else optax.identity(),
    optax.chain(
      direction,
      optax.add_decayed_weights(
        config.weight_decay,
        # Norm scales are vectors; decaying them pulls activations to zero.
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
      ),
      optax.scale_by_learning_rate(schedule),
    ),
  )

  def update(grads, state, params=None, *, learning_rate=None):
    rate = config.learning_rate if learning_rate is None else learning_rate
    # optax multiplies integer counts with floats, which callers that run
    # with strict promotion would otherwise not be able to trace.
    with jax.numpy_dtype_promotion("standard"):
      updates, state = chain.update(grads, state, params)
      return jax.tree.map(lambda u: rate * u, updates), state

  return optax.GradientTransformationExtraArgs(chain.init, update)
