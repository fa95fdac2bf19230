"""Hugging Face T5 folders <-> this project's parameters; needs no torch.

A folder holds `config.json` and `model.safetensors`, or several safetensors
files that `model.safetensors.index.json` lists, as `save_pretrained` of
`transformers` writes them: T5 1.1 and Flan-T5 (gated GELU, untied head), and
T5 1.0. Its matrices are those of this project transposed.
"""

import json
import math
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from gr_jax.core import checks
from gr_jax.integrations import network_shapes
from gr_jax.models import T5Config

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
# One matrix under up to three names; files keep the first or all.
_EMBEDDINGS = (
  "shared.weight",
  "encoder.embed_tokens.weight",
  "decoder.embed_tokens.weight",
)
# Written by old versions of `transformers`, read by none.
_UNUSED = frozenset(
  {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}
)
# Theirs -> ours. Their "gated-gelu" is the tanh form of GELU, as is ours, but
# plain "gelu" is the exact one, which no T5 was trained with.
_ACTIVATIONS = {
  "relu": ("relu",),
  "gelu_new": ("gelu",),
  "silu": ("silu",),
  "gated-relu": ("relu", "linear"),
  "gated-gelu": ("gelu", "linear"),
  "gated-silu": ("silu", "linear"),
}
_SIZES = {
  "vocab_size": "vocab_size",
  "d_model": "emb_dim",
  "num_heads": "num_heads",
  "num_layers": "num_encoder_layers",
  "num_decoder_layers": "num_decoder_layers",
  "d_kv": "head_dim",
  "d_ff": "mlp_dim",
  "relative_attention_num_buckets": "relpos_buckets",
  "relative_attention_max_distance": "relpos_max_distance",
}


def read_config(folder: str | os.PathLike[str]) -> T5Config:
  """Reads the sizes of a T5 from its `config.json`.

  Args:
    folder: As `save_pretrained` writes it.

  Raises:
    InputError: No such file, a network that is no T5, or a setting that this
      project's network lacks.
  """
  folder = pathlib.Path(folder)
  content = _read_json(folder)
  kind = content.get("model_type")
  if kind not in ("t5", "mt5"):
    raise checks.InputError(
      f"{str(folder)!r} holds a model of type {kind!r}; only 't5' and 'mt5' "
      "have this network."
    )
  activation = content.get("feed_forward_proj", "relu")
  checks.check_known(activation, _ACTIVATIONS, "feed_forward_proj")
  for name, only in (
    ("layer_norm_epsilon", 1e-6),
    ("pad_token_id", 0),
    ("decoder_start_token_id", 0),
  ):
    if content.get(name, only) not in (only, None):
      raise checks.InputError(
        f"{str(folder)!r} has {name}={content[name]}; this network has {only}."
      )
  content.setdefault("num_decoder_layers", content.get("num_layers"))
  content.setdefault("relative_attention_num_buckets", 32)
  content.setdefault("relative_attention_max_distance", 128)
  missing = [name for name in _SIZES if content.get(name) is None]
  if missing:
    raise checks.InputError(
      f"{str(folder / _CONFIG)!r} lacks {missing[0]!r}; save the model anew."
    )
  return T5Config(
    **{ours: content[theirs] for theirs, ours in _SIZES.items()},
    mlp_activations=_ACTIVATIONS[activation],
    dropout_rate=content.get("dropout_rate", 0.1),
    logits_via_embedding=_is_scaled(content) and _HEAD not in _files(folder),
  )


def load_params(folder: str | os.PathLike[str], config: T5Config) -> Any:
  """Reads a T5's weights.

  Args:
    folder: As `save_pretrained` writes it.
    config: The network that they must fit: in sizes, activations and head.
      `read_config(folder)` always fits.

  Returns:
    float32 parameters for `EncoderDecoder(config)`; numpy arrays.

  Raises:
    InputError: As `read_config`; a network of other sizes; a weight that is
      missing, unknown, or of another shape than `config.json` says.
  """
  folder = pathlib.Path(folder)
  _check_same(folder, read_config(folder), config)
  files = _files(folder)
  pairs = dict(_names(config))
  shapes = network_shapes.parameter_shapes(config)
  embedding = _embedding_name(folder, files)
  unknown = set(files) - {*pairs.values(), *_EMBEDDINGS, _HEAD, *_UNUSED}
  if unknown:
    raise checks.InputError(
      f"{str(folder)!r} has a weight {min(unknown)!r} that T5 has not."
    )
  pairs["token_embedder/embedding"] = embedding
  if not config.logits_via_embedding:
    # The head may be tied, and yet its input not divided by sqrt(E).
    head = _HEAD if _HEAD in files else embedding
    pairs["decoder/logits_dense/kernel"] = head
  params = {}
  for ours, theirs in pairs.items():
    if theirs not in files:
      raise checks.InputError(
        f"{str(folder)!r} lacks the weight {theirs!r}; save the model anew."
      )
    params[ours] = _read(files[theirs], theirs, ours, shapes[ours])
  if not config.logits_via_embedding and _is_scaled(_read_json(folder)):
    params["decoder/logits_dense/kernel"] /= np.float32(
      math.sqrt(config.emb_dim)
    )
  return flax.traverse_util.unflatten_dict(params, sep="/")


def save_params(
  folder: str | os.PathLike[str], params: Any, config: T5Config
) -> pathlib.Path:
  """Writes a folder for `T5ForConditionalGeneration.from_pretrained`.

  Args:
    folder: Must not exist.
    params: Of `EncoderDecoder(config)`.
    config: Their network.

  Returns:
    The folder.

  Raises:
    InputError: The folder exists, T5 has no such activations, or the
      parameters are of another network.
  """
  folder = pathlib.Path(folder).absolute()
  if folder.exists():
    raise checks.InputError(f"{str(folder)!r} exists; name another folder.")
  network_shapes.check_params(params, config)
  content = _config_json(config)
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  weights = {}
  for ours, theirs in _names(config):
    array = np.asarray(flat[ours], np.float32)
    weights[theirs] = np.ascontiguousarray(_turn(ours, array))
  partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
  partial.mkdir(parents=True)
  try:
    (partial / _CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    safetensors_numpy.save_file(
      weights, partial / _WEIGHTS, metadata={"format": "pt"}
    )
    partial.rename(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def _names(config: T5Config) -> Iterator[tuple[str, str]]:
  """Yields every parameter's name here and there."""
  yield "token_embedder/embedding", _EMBEDDINGS[0]
  yield from _stack_names(config, "encoder", config.num_encoder_layers)
  yield from _stack_names(config, "decoder", config.num_decoder_layers)
  if not config.logits_via_embedding:
    yield "decoder/logits_dense/kernel", _HEAD


def _stack_names(
  config: T5Config, stack: str, num_layers: int
) -> Iterator[tuple[str, str]]:
  # Sublayers in order: (name here, its norm here, name there).
  sublayers = [("attention", "attention", "SelfAttention")]
  if stack == "decoder":
    sublayers = [
      ("self_attention", "self_attention", "SelfAttention"),
      ("encoder_decoder_attention", "cross_attention", "EncDecAttention"),
    ]
  inner = ["wi_0", "wi_1"] if len(config.mlp_activations) == 2 else ["wi"]
  yield (
    f"{stack}/relpos_bias/rel_embedding",
    f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
  )
  for index in range(num_layers):
    here, there = f"{stack}/layers_{index}", f"{stack}.block.{index}.layer"
    for place, (name, norm, their_name) in enumerate(sublayers):
      yield (
        f"{here}/pre_{norm}_layer_norm/scale",
        f"{there}.{place}.layer_norm.weight",
      )
      for part in ("query", "key", "value", "out"):
        yield (
          f"{here}/{name}/{part}/kernel",
          f"{there}.{place}.{their_name}.{part[0]}.weight",
        )
    place = len(sublayers)
    yield (
      f"{here}/pre_mlp_layer_norm/scale",
      f"{there}.{place}.layer_norm.weight",
    )
    for part in (*inner, "wo"):
      yield (
        f"{here}/mlp/{part}/kernel",
        f"{there}.{place}.DenseReluDense.{part}.weight",
      )
  yield f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight"


def _turn(ours: str, array: np.ndarray) -> np.ndarray:
  """Transposes what is stored [out, in] there and [in, out] here."""
  return array if ours == "token_embedder/embedding" else array.T


def _read(
  file: pathlib.Path, theirs: str, ours: str, want: jax.ShapeDtypeStruct
) -> np.ndarray:
  with safetensors.safe_open(file, framework="np") as tensors:
    array = tensors.get_tensor(theirs)
  shape = _turn(ours, np.broadcast_to(0, want.shape)).shape
  if array.shape != shape:
    raise checks.InputError(
      f"Weight {theirs!r} of {str(file)!r} has shape {array.shape}, but "
      f"{_CONFIG} makes it {shape}; the two do not belong together."
    )
  return np.array(_turn(ours, array), np.float32)


def _is_scaled(content: Mapping[str, Any]) -> bool:
  """Whether the head's input is divided by sqrt(E), as T5 1.0 does.

  Before version 5 of `transformers` this was what a tied head meant; since
  then it has a key of its own.
  """
  tied = content.get("tie_word_embeddings", True)
  return content.get("scale_decoder_outputs", tied)


def _read_json(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / _CONFIG
  if not path.is_file():
    raise checks.InputError(
      f"No {_CONFIG} in {str(folder)!r}; name a folder that "
      "`save_pretrained` wrote."
    )
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise checks.InputError(f"{str(path)!r} is no JSON: {error}.") from error


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the file of every weight."""
  index = folder / _INDEX
  if index.is_file():
    of_weight = json.loads(index.read_text())["weight_map"]
    files = {name: folder / file for name, file in of_weight.items()}
  elif (folder / _WEIGHTS).is_file():
    files = dict.fromkeys(_tensor_names(folder / _WEIGHTS), folder / _WEIGHTS)
  else:
    raise checks.InputError(
      f"No {_WEIGHTS} in {str(folder)!r}; save the model with "
      "safe_serialization=True."
    )
  for file in sorted(set(files.values())):
    if not file.is_file():
      raise checks.InputError(
        f"{str(file)!r} is missing, though {_INDEX} names it."
      )
  return files


def _tensor_names(file: pathlib.Path) -> list[str]:
  try:
    with safetensors.safe_open(file, framework="np") as tensors:
      return list(tensors.keys())
  except safetensors.SafetensorError as error:
    raise checks.InputError(
      f"{str(file)!r} is damaged ({error}); fetch it again."
    ) from error


def _embedding_name(
  folder: pathlib.Path, files: Mapping[str, pathlib.Path]
) -> str:
  """Returns the name under which the one embedding is stored."""
  found = [name for name in _EMBEDDINGS if name in files]
  arrays = []
  for name in found:
    with safetensors.safe_open(files[name], framework="np") as tensors:
      arrays.append(tensors.get_tensor(name))
  for name, array in zip(found[1:], arrays[1:], strict=True):
    if not np.array_equal(array, arrays[0]):
      raise checks.InputError(
        f"{str(folder)!r} has a {name!r} of its own; this network has one "
        "embedding for encoder and decoder."
      )
  return found[0] if found else _EMBEDDINGS[0]


def _check_same(
  folder: pathlib.Path, found: T5Config, wanted: T5Config
) -> None:
  names = {ours: theirs for theirs, ours in _SIZES.items()}
  names |= {
    "mlp_activations": "feed_forward_proj",
    "logits_via_embedding": "tie_word_embeddings",
  }
  for ours, theirs in names.items():
    values = getattr(found, ours), getattr(wanted, ours)
    if values[0] != values[1]:
      raise checks.InputError(
        f"{str(folder)!r} has {ours}={values[0]} ({theirs}), the network "
        f"{values[1]}; make the two alike."
      )


def _config_json(config: T5Config) -> dict[str, Any]:
  projections = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
  if config.mlp_activations not in projections:
    raise checks.InputError(
      f"Hugging Face's T5 has no mlp_activations={config.mlp_activations}; it "
      f"has {', '.join(map(str, projections))}."
    )
  if not config.num_encoder_layers:
    raise checks.InputError(
      "Hugging Face's T5 keeps its position bias in the first layer; need "
      "num_encoder_layers >= 1, got 0."
    )
  tied = config.logits_via_embedding
  return {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
    "feed_forward_proj": projections[config.mlp_activations],
    "dropout_rate": config.dropout_rate,
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": tied,
    "scale_decoder_outputs": tied,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
  }
