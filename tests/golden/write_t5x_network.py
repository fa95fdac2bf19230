"""Rewrites t5x_network.json from T5X's own networks; needs `import t5x`.

python tests/golden/write_t5x_network.py
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

SIZES = {
  "vocab_size": 20,
  "emb_dim": 8,
  "mlp_dim": 12,
  "num_heads": 2,
  "head_dim": 4,
  "num_encoder_layers": 2,
  "num_decoder_layers": 1,
}
VARIANTS = {
  "gated_untied": {
    "mlp_activations": ("gelu", "linear"),
    "logits_via_embedding": False,
  },
  "relu_tied": {"mlp_activations": ("relu",), "logits_via_embedding": True},
}
TARGETS = np.array([[4, 9, 2, 1], [7, 3, 1, 0]], np.int32)
INPUTS = np.array(
  [[3, 19, 4, 5, 1] + [0] * 35, list(range(1, 20)) * 2 + [6, 1]], np.int32
)


def made_up_params(shapes: dict) -> dict:
  """Fills a tree of shapes with numbers that follow from the path alone."""

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    size = int(np.prod(leaf.shape))
    wave = np.sin(np.arange(size) * 0.7 + sum(map(ord, name)) % 97)
    return (1.2 * wave + 0.1).reshape(leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def decoder_only() -> dict:
  """Returns names, shapes and logits of T5X's decoder-only example."""
  from t5x.examples.decoder_only import network

  sizes = {k: v for k, v in SIZES.items() if "_layers" not in k}
  model = network.DecoderWrapper(
    network.TransformerConfig(
      **sizes, num_layers=2, mlp_activations=("gelu", "linear")
    )
  )
  # Padding in front; the example masks where "targets" are 0.
  length = INPUTS.shape[1]
  prefix = np.stack([np.roll(row, length - np.sum(row > 0)) for row in INPUTS])
  shifted = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]
  tokens = np.concatenate([prefix, shifted], axis=1)
  is_token = np.concatenate([prefix > 0, np.ones_like(TARGETS)], axis=1)
  batch = (jnp.asarray(tokens), jnp.asarray(is_token, jnp.int32))
  return measured(model, batch, TARGETS.shape[1])


def measured(model, batch: tuple, num_outputs: int) -> dict:
  """Returns names, shapes and the last positions' logits of a T5X network."""
  shapes = jax.eval_shape(
    lambda key: model.init({"params": key}, *batch, enable_dropout=False),
    jax.random.key(0),
  )["params"]
  params = made_up_params(shapes)
  logits = model.apply({"params": params}, *batch, enable_dropout=False)
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  return {
    "shapes": {
      "/".join(entry.key for entry in path): list(leaf.shape)
      for path, leaf in leaves
    },
    "logits": np.round(np.asarray(logits[:, -num_outputs:]), 6).tolist(),
  }


def main() -> None:
  """Writes names, shapes and logits of all networks."""
  from t5x.examples.t5 import network

  golden = {"decoder_only": decoder_only()}
  for name, variant in VARIANTS.items():
    model = network.Transformer(network.T5Config(**SIZES, **variant))
    shifted = np.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]
    batch = (jnp.asarray(INPUTS), jnp.asarray(shifted), jnp.asarray(TARGETS))
    golden[name] = measured(model, batch, TARGETS.shape[1])
  path = pathlib.Path(__file__).with_name("t5x_network.json")
  path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
