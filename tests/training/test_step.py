"""Order of examples and the jitted steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.training import loop, optimizer, step
from gr_jax.training.state import init_state

CONFIG = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=2)


def _start(world, key):
  chain = optimizer.make_optimizer(CONFIG, 400)
  params = loop.init_params(world.model, world.layout, key=key)
  return chain, init_state(params, chain)


def _run(world, key, mesh, num_steps, calls, model=None):
  chain, state = _start(world, key)
  run = step.make_train_steps(
    model or world.model,
    chain,
    world.layout,
    mesh,
    batch_size=16,
    num_steps=num_steps,
  )
  state = jax.device_put(state, mesh_lib.replicated(mesh))
  data = jax.device_put(world.data, mesh_lib.replicated(mesh))
  for _ in range(calls):
    state, metrics = run(state, data, key)
  assert run._cache_size() == 1
  return state, metrics


def test_every_epoch_sees_every_example_once(key):
  num_examples, batch_size = 21, 6
  index = jax.jit(
    lambda s: step.example_indices(
      s, key, batch_size=batch_size, num_examples=num_examples
    )
  )
  order = np.concatenate([index(jnp.int32(s)) for s in range(14)])
  epochs = order.reshape(4, num_examples)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))
  assert not np.array_equal(epochs[0], epochs[1])


def test_steps_a_dispatch_do_not_change_the_result(world, key, one_device):
  together, _ = _run(world, key, one_device, num_steps=6, calls=1)
  apart, _ = _run(world, key, one_device, num_steps=2, calls=3)
  assert int(together.step) == int(apart.step) == 6
  # Two programs: the compiler may round differently, the examples may not.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    together.params,
    apart.params,
  )


def test_devices_share_a_batch_without_changing_the_loss(
  world, key, one_device
):
  model = world.model.clone(
    config=world.model.config.__class__(
      **{**vars(world.model.config), "dropout_rate": 0.0}
    )
  )
  alone, single = _run(world, key, one_device, 4, 1, model)
  spread, eight = _run(
    world, key, mesh_lib.make_mesh(jax.devices()), 4, 1, model
  )
  np.testing.assert_allclose(single.loss, eight.loss, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    alone.params,
    spread.params,
  )


def test_training_learns_the_cycle(world, key, one_device):
  _, first = _run(world, key, one_device, num_steps=2, calls=1)
  _, last = _run(world, key, one_device, num_steps=100, calls=3)
  assert last.loss < 0.3 * first.loss


def test_refusals(world, one_device):
  with pytest.raises(checks.InputError, match="passes 2\\^32 examples"):
    step.check_run_length(1 << 20, 1 << 12)
  with pytest.raises(checks.InputError, match="batch_size=12 is not"):
    step.make_train_steps(
      world.model,
      optimizer.make_optimizer(CONFIG, 20),
      world.layout,
      mesh_lib.make_mesh(jax.devices()),
      batch_size=12,
      num_steps=1,
    )
