"""Order of examples and the jitted steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.tasks import packing
from gr_jax.training import loaders, loop, optimizer, step
from gr_jax.training.state import init_state

CONFIG = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=2)


def _start(world, key):
  chain = optimizer.make_optimizer(CONFIG, 400)
  params = loop.init_params(world.model, world.layout, keys=key[None])
  return chain, init_state(params, chain)


def _run(world, key, mesh, num_steps, calls, model=None):
  chain, state = _start(world, key)
  loader = loaders.DeviceLoader(world.data, world.layout, mesh, batch_size=16)
  run = step.make_train_steps(
    model or world.model,
    chain,
    mesh,
    sampler=loader.sampler,
    num_steps=num_steps,
    learning_rates=[CONFIG.learning_rate],
    dropout_rates=[(model or world.model).config.dropout_rate],
  )
  state = jax.device_put(state, mesh_lib.replicated(mesh))
  for _ in range(calls):
    state, metrics = run(state, loader.data, key[None])
  assert run._cache_size() == 1
  return state, metrics


@pytest.mark.parametrize("num_strata", [1, 2, 3])
def test_every_epoch_sees_every_example_once(key, num_strata):
  num_examples, batch_size = 21, 6
  strata = packing.Strata(num_examples, num_strata)
  index = jax.jit(
    lambda s: step.example_indices(s, key, batch_size=batch_size, strata=strata)
  )
  order = np.stack([index(jnp.int32(s)) for s in range(4 * 21)])
  share = batch_size // num_strata
  for g, (start, size) in enumerate(
    zip(strata.starts, strata.sizes, strict=True)
  ):
    own = order[:, g * share : (g + 1) * share].reshape(-1)
    epochs = own[: 4 * size].reshape(4, size)
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), start + np.arange(size))
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


def test_replicas_train_as_they_would_alone(world, one_device):
  rates, drops = [1e-2, 3e-2, 1e-2], [0.1, 0.1, 0.3]
  keys = jnp.stack([jax.random.key(seed) for seed in (3, 4, 5)])

  loader = loaders.DeviceLoader(
    world.data, world.layout, one_device, batch_size=16
  )

  def train(chosen):
    chain = optimizer.make_optimizer(CONFIG, 400)
    run = step.make_train_steps(
      world.model,
      chain,
      one_device,
      sampler=loader.sampler,
      num_steps=6,
      learning_rates=[rates[r] for r in chosen],
      dropout_rates=[drops[r] for r in chosen],
    )
    some = keys[jnp.asarray(chosen)]
    params = loop.init_params(world.model, world.layout, keys=some)
    return run(init_state(params, chain), loader.data, some)

  together, losses = train([0, 1, 2])
  for r in range(3):
    alone, loss = train([r])
    np.testing.assert_allclose(losses.loss[r], loss.loss[0], rtol=1e-5)
    jax.tree.map(
      lambda a, b, r=r: np.testing.assert_allclose(a[r], b[0], atol=2e-4),
      together.params,
      alone.params,
    )
  # All three went ways of their own.
  kernel = together.params["decoder"]["logits_dense"]["kernel"]
  assert np.ptp(kernel, axis=0).max() > 0.01


def test_training_learns_the_cycle(world, key, one_device):
  _, first = _run(world, key, one_device, num_steps=2, calls=1)
  _, last = _run(world, key, one_device, num_steps=100, calls=3)
  assert last.loss[0] < 0.3 * first.loss[0]


def test_refusals(world, one_device):
  with pytest.raises(checks.InputError, match="passes 2\\^32 examples"):
    step.check_run_length(1 << 20, 1 << 12)
  with pytest.raises(checks.InputError, match="batch_size=12 is not"):
    loaders.DeviceLoader(
      world.data,
      world.layout,
      mesh_lib.make_mesh(jax.devices()),
      batch_size=12,
    )
