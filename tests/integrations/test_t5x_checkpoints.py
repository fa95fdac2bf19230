"""T5X's checkpoint format, read and written without T5X."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks, mesh
from gr_jax.integrations import t5x_checkpoints
from gr_jax.models import EncoderDecoder, T5Config

CONFIG = T5Config(
  vocab_size=16,
  emb_dim=4,
  num_heads=2,
  head_dim=2,
  mlp_dim=8,
  num_encoder_layers=1,
  num_decoder_layers=1,
)


@pytest.fixture(scope="module")
def params():
  tokens = jnp.ones((1, 2), jnp.int32)
  init = jax.jit(
    lambda key: EncoderDecoder(CONFIG).init(
      key, tokens, tokens, deterministic=True
    )
  )
  return init(jax.random.key(0))["params"]


def test_what_is_written_is_read(params, tmp_path):
  path = t5x_checkpoints.save_params(tmp_path / "model", params, step=30)
  assert path.name == "checkpoint_30"
  assert (path / "state").is_dir()  # where T5X looks
  doubled = jax.tree.map(lambda x: 2 * x, params)
  t5x_checkpoints.save_params(tmp_path / "model", doubled, step=200)
  for where, step, want in (
    (path, 30, params),
    (tmp_path / "model", 200, doubled),  # the newest, by number
  ):
    found_step, found = t5x_checkpoints.load_params(where, CONFIG)
    assert found_step == step
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_what_many_devices_wrote_is_read(params, tmp_path):
  over_all = mesh.batch_sharding(mesh.make_mesh(jax.devices()))
  embedding = params["token_embedder"]["embedding"]  # [16, E], 2 rows each
  split = {"embedding": jax.device_put(embedding, over_all)}
  state = {"target": {**params, "token_embedder": split}}
  with t5x_checkpoints._manager(tmp_path) as manager:
    manager.save(
      3,
      args=t5x_checkpoints.ocp.args.Composite(
        state=t5x_checkpoints.ocp.args.PyTreeSave(state)
      ),
    )
  _, found = t5x_checkpoints.load_params(tmp_path, CONFIG)
  assert isinstance(found["token_embedder"]["embedding"], np.ndarray)
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_other_networks_and_folders_are_refused(params, tmp_path):
  with pytest.raises(checks.InputError, match=r"No T5X checkpoint in .*/none"):
    t5x_checkpoints.load_params(tmp_path / "none", CONFIG)
  path = t5x_checkpoints.save_params(tmp_path, params, step=1)
  with pytest.raises(checks.InputError, match=r"checkpoint_1' exists"):
    t5x_checkpoints.save_params(tmp_path, params, step=1)
  wider = T5Config(**{**vars(CONFIG), "mlp_dim": 16})
  with pytest.raises(checks.InputError, match=r"wi_0/kernel'.*\(4, 8\).*16"):
    t5x_checkpoints.load_params(path, wider)
  deeper = T5Config(**{**vars(CONFIG), "num_encoder_layers": 2})
  with pytest.raises(checks.InputError, match=r"layers_1/.* has shape None"):
    t5x_checkpoints.load_params(path, deeper)


def test_other_trees_are_refused(tmp_path):
  t5x_checkpoints._manager(tmp_path).save(
    3,
    args=t5x_checkpoints.ocp.args.Composite(
      state=t5x_checkpoints.ocp.args.PyTreeSave({"a": np.zeros(2)})
    ),
  )
  with pytest.raises(checks.InputError, match=r"'target' is missing"):
    t5x_checkpoints.load_params(tmp_path, CONFIG)
