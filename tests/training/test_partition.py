"""Parameters split by rules: same numbers on every mesh, smaller shards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.decoding import trie as trie_lib
from gr_jax.evaluation import evaluator
from gr_jax.models import RQTransformer, SASRec
from gr_jax.tasks import windows
from gr_jax.training import loaders, loop, optimizer, partition, step
from gr_jax.training.state import init_state

CONFIG = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
NUM_DEVICES = 8


@pytest.fixture(scope="module")
def model(world):
  """The world's network with axes that 8 divides, without dropout."""
  config = world.model.config
  settings = vars(config) | {"vocab_size": 16, "dropout_rate": 0.0}
  return world.model.clone(config=config.__class__(**settings))


def _train(world, model, mesh, rules, num_steps=3, replicas=1, config=CONFIG):
  chain = optimizer.make_optimizer(config, 100)
  shardings, make_state = loop.planned_state(
    model, chain, world.layout, mesh, rules, _keys(7, replicas)
  )
  loader = loaders.DeviceLoader(world.data, world.layout, mesh, batch_size=16)
  run = step.make_train_steps(
    model, chain, mesh, sampler=loader.sampler, num_steps=1,
    learning_rates=[config.learning_rate] * replicas,
    dropout_rates=[0.0] * replicas, shardings=shardings,
  )  # fmt: skip
  state, rows = make_state(), []
  for _ in range(num_steps):
    state, metrics = run(state, loader.data, _keys(8, replicas))
    rows.append(jax.tree.leaves(jax.device_get(metrics)))
  assert run._cache_size() == 1
  return state, np.asarray(rows)


def _keys(seed, replicas):
  return jnp.stack([jax.random.key(seed + r) for r in range(replicas)])


@pytest.fixture(scope="module")
def alone(world, model, one_device):
  return _train(world, model, one_device, {})


@pytest.mark.parametrize(
  ("data", "tensor", "replica", "rules"),
  [
    pytest.param(8, 1, 1, "fsdp", marks=pytest.mark.slow),
    (4, 2, 1, "fsdp_tensor"),
    pytest.param(2, 4, 1, "tensor", marks=pytest.mark.slow),
    pytest.param(1, 8, 1, "fsdp_tensor", marks=pytest.mark.slow),
    pytest.param(2, 2, 2, "fsdp_tensor", marks=pytest.mark.slow),
  ],
)
def test_every_mesh_trains_as_one_device(
  world, model, alone, data, tensor, replica, rules
):
  mesh = mesh_lib.make_mesh(
    jax.devices()[:NUM_DEVICES], data=data, model=tensor, replica=replica
  )
  state, rows = _train(world, model, mesh, partition.RULES[rules])
  want_state, want_rows = alone
  np.testing.assert_allclose(rows, want_rows, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    jax.device_get(state.params),
    jax.device_get(want_state.params),
  )
  # The rules did something: each device holds its part, moments included.
  ways = 1
  ways *= data if "fsdp" in rules else 1
  ways *= tensor if "tensor" in rules else 1
  moments = state.opt_state[1][0].mu
  for tree in (state.params, moments):
    kernel = tree["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // ways
  # And evaluation reads the parameters as they lie.
  want = _predict(world, model, _first(want_state), mesh_lib.make_mesh(
    jax.devices()[:1]))  # fmt: skip
  got = _predict(world, model, _first(state), mesh)
  np.testing.assert_array_equal(want.item_index, got.item_index)
  np.testing.assert_allclose(want.scores, got.scores, atol=1e-4)


@pytest.mark.parametrize(
  "network",
  [
    RQTransformer,
    pytest.param(
      lambda *args: SASRec(*args, 4), marks=pytest.mark.slow, id="sasrec"
    ),
  ],
)
def test_networks_over_items_train_alike_on_many_devices(
  world, model, one_device, network
):
  examples = windows.training_examples(
    world.interactions, world.split, "sequences", 4
  )
  sequences = dataclasses.replace(
    world,
    layout=dataclasses.replace(world.layout, every_item=True),
    data=windows.with_examples(world.data, examples),
  )
  net = network(model.config, world.vocabulary.code_ranges)
  want_state, want_rows = _train(sequences, net, one_device, {})
  mesh = mesh_lib.make_mesh(jax.devices()[:NUM_DEVICES], data=4, model=2)
  state, rows = _train(sequences, net, mesh, partition.RULES["fsdp_tensor"])
  np.testing.assert_allclose(rows, want_rows, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    jax.device_get(state.params),
    jax.device_get(want_state.params),
  )


def _first(state):
  where = partition.one_replica(
    jax.tree.map(lambda p: p.sharding, state.params)
  )
  take = jax.jit(
    lambda params: jax.tree.map(lambda p: p[0], params), out_shardings=where
  )
  return take(state.params)


@pytest.mark.slow
def test_replicas_over_devices_train_as_one_device(world, model, one_device):
  want_state, want_rows = _train(world, model, one_device, {}, replicas=4)
  mesh = mesh_lib.make_mesh(jax.devices()[:4])
  state, rows = _train(
    world, model, mesh, partition.RULES["replicas"], replicas=4
  )
  np.testing.assert_allclose(rows, want_rows, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    jax.device_get(state.params),
    jax.device_get(want_state.params),
  )
  for leaf in jax.tree.leaves(state.params):
    assert leaf.addressable_shards[0].data.shape == (1, *leaf.shape[1:])
  with pytest.raises(checks.InputError, match="Axis replica=3 of parameter"):
    _train(world, model, mesh, partition.RULES["replicas"], replicas=3)


def _predict(world, model, params, mesh):
  trie = trie_lib.build_trie(world.catalog.codes, world.catalog.codebook_sizes)
  recommend = evaluator.make_recommend_fn(
    model, world.vocabulary, trie, beam_width=4, mesh=mesh
  )
  data = jax.tree.map(np.asarray, world.data)
  data = data.replace(
    user_index=data.user_index[:20],
    history_start=data.history_start[:20],
    target_position=data.target_position[:20],
  )
  return evaluator.predict(
    recommend, params, data, world.layout, batch_size=16, mesh=mesh
  )


def test_fsdp_gathers_parameters_and_keeps_moments_apart(world, model):
  mesh = mesh_lib.make_mesh(jax.devices()[:NUM_DEVICES])
  chain = optimizer.make_optimizer(CONFIG, 100)
  shapes = jax.eval_shape(
    lambda k: init_state(
      loop.init_params(model, world.layout, keys=k), chain
    ),
    _keys(0, 1),
  )  # fmt: skip
  shardings = partition.state_shardings(
    shapes, mesh, partition.RULES["fsdp_tensor"]
  )
  wo = shardings.params["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]
  assert wo.spec == PartitionSpec(None, "model", "data")
  assert mesh_lib.without_data(wo).spec == PartitionSpec(None, "model", None)
  assert shardings.opt_state[1][0].nu["token_embedder"]["embedding"].spec == (
    PartitionSpec(None, "model", "data")
  )
  assert shardings.step.spec == PartitionSpec()
  assert shardings.opt_state[1][0].count.spec == PartitionSpec()


ADAFACTOR = optimizer.OptimizerConfig(
  name="adafactor", learning_rate=0.01, schedule="t5", warmup_steps=2
)


def test_adafactor_trains_alike_on_many_devices(world, model, one_device):
  want_state, want_rows = _train(world, model, one_device, {}, config=ADAFACTOR)
  mesh = mesh_lib.make_mesh(jax.devices()[:NUM_DEVICES], data=4, model=2)
  state, rows = _train(
    world, model, mesh, partition.RULES["fsdp_tensor"], config=ADAFACTOR
  )
  np.testing.assert_allclose(rows, want_rows, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    jax.device_get(state.params),
    jax.device_get(want_state.params),
  )


def test_adafactor_s_rows_and_columns_lie_on_every_device():
  # 128 is where optax begins to keep rows and columns in a matrix's place.
  params = {"mlp": {"wo": {"kernel": jnp.zeros((2, 256, 128))}}}
  state = init_state(params, optimizer.make_optimizer(ADAFACTOR, 100))
  mesh = mesh_lib.make_mesh(jax.devices()[:NUM_DEVICES], data=2, model=4)

  def specs(rules):
    found = partition.state_shardings(state, mesh, partition.RULES[rules])
    factored = found.opt_state[1][0][0]
    kernels = [found.params, factored.v_row, factored.v_col, factored.v]
    return [tree["mlp"]["wo"]["kernel"].spec for tree in kernels]

  everywhere = PartitionSpec(None, None)
  assert specs("fsdp_tensor") == [
    PartitionSpec(None, "model", "data"), *[everywhere] * 3
  ]  # fmt: skip
  split = PartitionSpec("data", None)
  assert specs("replicas") == [PartitionSpec("data", None, None), *[split] * 3]


def test_refusals():
  mesh = mesh_lib.make_mesh(jax.devices()[:8], data=2, model=4)

  def shard(rules, shape=(8, 8)):
    axes = PartitionSpec("embed", "mlp")
    return mesh_lib.shard_by_rules(mesh, axes, shape, rules, "wi")

  with pytest.raises(checks.InputError, match="Axis mlp=6 of parameter wi is"):
    shard({"mlp": "model"}, (8, 6))
  with pytest.raises(checks.InputError, match="Unknown mesh axis in rule"):
    shard({"mlp": "modle"})
  with pytest.raises(checks.InputError, match="two axes .* on one mesh axis"):
    shard({"mlp": "model", "embed": "model"})
  with pytest.raises(checks.InputError, match="model=3 does not divide"):
    mesh_lib.make_mesh(jax.devices()[:8], model=3)
  with pytest.raises(
    checks.InputError, match="replica=3 does not divide the 8"
  ):
    mesh_lib.make_mesh(jax.devices()[:8], replica=3)
  with pytest.raises(checks.InputError, match="data=3 x model=1 does not use"):
    mesh_lib.make_mesh(jax.devices()[:8], data=3)
  with pytest.raises(
    checks.InputError, match="data=4 x model=1 x replica=4 does not use"
  ):
    mesh_lib.make_mesh(jax.devices()[:8], data=4, replica=4)
  grid = mesh_lib.make_mesh(jax.devices()[:8], model=2, replica=2)
  with pytest.raises(checks.InputError, match="=6 is not a multiple of the 4"):
    mesh_lib.check_batch(grid, 6)


def test_rows_are_split_over_groups_of_devices_too():
  grid = mesh_lib.make_mesh(jax.devices()[:8], model=2, replica=2)
  assert dict(grid.shape) == {"replica": 2, "data": 2, "model": 2}
  x = mesh_lib.place(np.arange(8.0), mesh_lib.batch_sharding(grid))
  assert [s.data.tolist() for s in x.addressable_shards[::2]] == [
    [0, 1], [2, 3], [4, 5], [6, 7]
  ]  # fmt: skip
  fsdp = partition.RULES["fsdp"]
  axes = PartitionSpec("embed", "mlp")
  kept = mesh_lib.shard_by_rules(grid, axes, (8, 8), fsdp, "wi")
  assert kept.spec == PartitionSpec("data", None)
