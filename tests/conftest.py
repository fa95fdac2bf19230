"""Strict settings for every test: 8 devices, no silent promotion."""

import gc
import importlib.metadata
import os
import pathlib

_FLAGS = ["--xla_force_host_platform_device_count=8"]
# `make test` compiles fast rather than well: a worker has one core, and XLA's
# older emitters take half the time or less. jaxlib 0.11 no longer has them.
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS"):
  _FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
# By the end a full collection takes a second, and it finds next to nothing.
gc.set_threshold(700, 10, 1000)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Many tests compile the same small programs; workers share the results.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from jaxtyping import install_import_hook

install_import_hook("gr_jax", "beartype.beartype")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key():
  """A fresh typed key."""
  return jax.random.key(0)


@pytest.fixture(scope="session")
def real_data_dir():
  """Folder of real data sets; tests that need it are skipped without."""
  folder = os.environ.get("GR_JAX_DATA_DIR")
  if not folder:
    pytest.skip("set GR_JAX_DATA_DIR to a folder with beauty/ and toys/")
  return folder
