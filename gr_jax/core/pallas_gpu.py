"""Which devices run this project's Pallas kernels, and with what options.

Kernels are written for Pallas' Triton backend, or for its Mosaic backend where
that pays. Every one has a plain form beside it, which runs elsewhere.
"""

import importlib.util
import re
from typing import Any

import jax
from jax.experimental import pallas as pl


def is_known_device() -> bool:
  """Whether JAX runs on an NVIDIA GPU that Triton kernels are written for.

  A guess that a device placement contradicts costs time alone: kernels are
  lowered for CUDA only, and the plain forms give the same results.
  """
  return _capability() >= 8 and _has("triton")


def is_hopper() -> bool:
  """As `is_known_device`, for what only Hopper GPUs can (H100, H200)."""
  return int(_capability()) == 9 and _has("mosaic_gpu")


def num_processors() -> int:
  """Streaming multiprocessors of this process' GPU; an H200's if not told."""
  return getattr(jax.local_devices()[0], "core_count", None) or 132


def _capability() -> float:
  """The compute capability of an NVIDIA GPU, or 0."""
  if jax.default_backend() != "gpu":
    return 0.0
  capability = getattr(jax.local_devices()[0], "compute_capability", "")
  is_number = re.fullmatch(r"\d+\.\d", str(capability)) is not None
  return float(capability) if is_number else 0.0


def _has(backend: str) -> bool:
  """Whether this jax holds a backend that compiles kernels."""
  name = f"jax.experimental.pallas.{backend}"
  return importlib.util.find_spec(name) is not None


def options(
  num_warps: int, num_stages: int, *, interpret: bool
) -> dict[str, Any]:
  """Returns arguments for `pallas_call`; interpreted, it runs anywhere."""
  if interpret:
    return {"interpret": True}
  from jax.experimental.pallas import triton

  params = triton.CompilerParams(num_warps=num_warps, num_stages=num_stages)
  return {"compiler_params": params}


def whole(x: Any) -> pl.BlockSpec:
  """All of an array for every program."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))


def load(ref: Any, *, mask: jax.Array, other: int | float) -> jax.Array:
  """Reads places of an array; `other` where the mask is False."""
  from jax.experimental.pallas import triton

  return triton.load(ref, mask=mask, other=other)


def store(ref: Any, value: jax.Array, *, mask: jax.Array) -> None:
  """Writes places of an array where the mask is True."""
  from jax.experimental.pallas import triton

  triton.store(ref, value, mask=mask)
