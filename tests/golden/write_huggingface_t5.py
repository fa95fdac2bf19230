"""Rewrites huggingface_t5.json from `transformers`' T5; needs torch.

python tests/golden/write_huggingface_t5.py
"""

import json
import pathlib

import numpy as np

SIZES = {
  "vocab_size": 20,
  "d_model": 8,
  "d_ff": 12,
  "num_heads": 2,
  "d_kv": 4,
  "num_layers": 2,
  "num_decoder_layers": 1,
}
# Whether the head is tied, and whether its input is divided by sqrt(d_model),
# are two things since version 5 of `transformers`.
VARIANTS = {
  "t5_1_1": {"feed_forward_proj": "gated-gelu", "tied": False, "scaled": False},
  "t5_1_0": {"feed_forward_proj": "relu", "tied": True, "scaled": True},
  "tied_unscaled": {
    "feed_forward_proj": "gated-silu",
    "tied": True,
    "scaled": False,
  },
}
INPUTS = np.array(
  [[3, 19, 4, 5, 1] + [0] * 35, list(range(1, 20)) * 2 + [6, 1]], np.int32
)
DECODER_INPUTS = np.array([[0, 4, 9, 2], [0, 7, 3, 1]], np.int32)


def made_up(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns numbers that follow from the name alone."""
  wave = np.sin(np.arange(np.prod(shape)) * 0.7 + sum(map(ord, name)) % 97)
  return (1.2 * wave + 0.1).reshape(shape).astype(np.float32)


def make_model(variant: dict):
  """Returns `transformers`' model with made-up weights."""
  import torch
  import transformers

  variant = dict(variant)
  tied, scaled = variant.pop("tied"), variant.pop("scaled")
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      **SIZES,
      **variant,
      dropout_rate=0.0,
      tie_word_embeddings=scaled,
      decoder_start_token_id=0,
    )
  ).eval()
  if not tied:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.copy_(torch.from_numpy(made_up(name, tuple(weight.shape))))
  return model


def logits_of(model) -> np.ndarray:
  """Returns the model's logits of the inputs above."""
  import torch

  inputs = torch.from_numpy(INPUTS).long()
  with torch.no_grad():
    output = model(
      input_ids=inputs,
      attention_mask=(inputs > 0).long(),
      decoder_input_ids=torch.from_numpy(DECODER_INPUTS).long(),
    )
  return output.logits.numpy()


def main() -> None:
  """Writes config, shapes and logits of all variants."""
  import transformers

  golden = {}
  for name, variant in VARIANTS.items():
    model = make_model(variant)
    config = model.config.to_dict()
    golden[name] = {
      "transformers": transformers.__version__,
      "config": {
        key: config[key]
        for key in sorted(config)
        if isinstance(config[key], int | float | str)
      },
      "shapes": {
        name: list(weight.shape) for name, weight in model.named_parameters()
      },
      "logits": np.round(logits_of(model), 5).tolist(),
    }
  path = pathlib.Path(__file__).with_name("huggingface_t5.json")
  path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
