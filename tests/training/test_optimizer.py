"""Schedules and the optimizer chain."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.core import checks
from gr_jax.training import optimizer as optimizer_lib
from gr_jax.training.optimizer import OptimizerConfig


@pytest.mark.parametrize(
  ("schedule", "at_end", "at_40"),
  [("cosine", 0.0, None), ("rsqrt", 0.1**0.5, 0.5), ("constant", 1.0, 1.0)],
)
def test_schedules_by_hand(schedule, at_end, at_40):
  config = OptimizerConfig(
    learning_rate=1.0, schedule=schedule, warmup_steps=10
  )
  rate = optimizer_lib.make_schedule(config, 100)
  np.testing.assert_allclose(rate(jnp.float32(0)), 0.0)
  np.testing.assert_allclose(rate(jnp.float32(5)), 0.5)
  np.testing.assert_allclose(rate(jnp.float32(10)), 1.0)
  np.testing.assert_allclose(rate(jnp.float32(100)), at_end, atol=1e-6)
  if at_40 is not None:
    np.testing.assert_allclose(rate(jnp.float32(40)), at_40, rtol=1e-6)


def test_t5_s_schedule_holds_its_peak_then_falls():
  config = OptimizerConfig(learning_rate=1.0, schedule="t5", warmup_steps=10)
  rate = optimizer_lib.make_schedule(config, 100)
  for step, want in ((0, 1.0), (10, 1.0), (40, 0.5), (90, 1 / 3)):
    np.testing.assert_allclose(rate(jnp.float32(step)), want, rtol=1e-6)


def test_adafactor_is_optax_s():
  draw = np.random.default_rng(0)
  # A matrix large enough to be factored, one that is not, a vector.
  shapes = {"wide": (128, 130), "small": (3, 4), "scale": (5,)}
  params = {k: jnp.asarray(draw.normal(size=v)) for k, v in shapes.items()}
  config = OptimizerConfig(
    name="adafactor", learning_rate=0.01, schedule="t5",
    warmup_steps=2, weight_decay=0.0, clip_norm=0.0,
  )  # fmt: skip
  ours = optimizer_lib.make_optimizer(config, 10)
  theirs = optax.adafactor(lambda step: 0.01 / max(1.0, step / 2) ** 0.5)
  our_state, their_state = ours.init(params), theirs.init(params)
  for _ in range(4):
    grads = {k: jnp.asarray(draw.normal(size=v)) for k, v in shapes.items()}
    got, our_state = ours.update(grads, our_state, params)
    want, their_state = theirs.update(grads, their_state, params)
    for name in shapes:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    params = optax.apply_updates(params, got)


def test_adafactor_s_first_step_by_hand():
  # Of one element the second moment is g^2 and the direction its sign; the
  # step is the rate times the parameter, and a thousandth of it at least.
  params = {"a": jnp.full((1,), -4.0), "b": jnp.zeros((1,))}
  config = OptimizerConfig(
    name="adafactor", learning_rate=0.01, schedule="t5", clip_norm=0.0
  )
  chain = optimizer_lib.make_optimizer(config, 1_000)
  grads = {"a": jnp.full((1,), 7.0), "b": jnp.full((1,), -3.0)}
  updates, _ = chain.update(grads, chain.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.04], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [1e-5], rtol=1e-6)


def test_decay_spares_vectors_and_clipping_bounds_the_gradient():
  params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
  config = OptimizerConfig(
    learning_rate=0.1, schedule="constant", warmup_steps=1, weight_decay=0.5
  )
  chain = optimizer_lib.make_optimizer(config, 10)
  state = chain.init(params)
  zeros = {"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros(2)}
  _, state = chain.update(zeros, state, params)  # the rate of step 0 is 0
  updates, _ = chain.update(zeros, state, params)
  np.testing.assert_allclose(updates["kernel"], -0.05)
  np.testing.assert_allclose(updates["scale"], 0.0)


def test_refusals():
  with pytest.raises(checks.InputError, match="Unknown optimizer.name 'adam'"):
    OptimizerConfig(name="adam")
  with pytest.raises(checks.InputError, match="Unknown schedule 'cosin'"):
    OptimizerConfig(schedule="cosin")
  with pytest.raises(checks.InputError, match="learning_rate=0"):
    OptimizerConfig(learning_rate=0.0)
  with pytest.raises(checks.InputError, match=r"warmup_steps=500 .*=500"):
    optimizer_lib.make_schedule(OptimizerConfig(), 500)


@pytest.mark.parametrize("most", [0.5, 100.0])
def test_clipping_is_optax_s(most):
  draw = np.random.default_rng(0)
  shapes = {"a": (3, 4), "b": (3, 4), "c": (5,), "d": ()}
  grads = {k: jnp.asarray(draw.normal(size=v)) for k, v in shapes.items()}
  norm = optimizer_lib.global_norm(grads)
  np.testing.assert_allclose(norm, optax.tree.norm(grads), rtol=1e-6)
  ours = optimizer_lib.clip_by_global_norm(most)
  theirs = optax.clip_by_global_norm(most)
  state = theirs.init(grads)
  assert ours.init(grads) == state
  for key, got in ours.update(grads, state)[0].items():
    want = theirs.update(grads, state)[0][key]
    np.testing.assert_allclose(got, want, rtol=1e-6)
