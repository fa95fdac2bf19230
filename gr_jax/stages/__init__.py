"""One function a stage: settings and a workdir in, an artifact out."""

from gr_jax.core.checks import InputError
from gr_jax.stages.codebooks import compare, compare_tokenizers, report
from gr_jax.stages.config import RunConfig
from gr_jax.stages.holding_out import cold_start
from gr_jax.stages.preemption import Stopped
from gr_jax.stages.recommendation import Request
from gr_jax.stages.retrieval import RetrievalOptions
from gr_jax.stages.retrieval import compare as compare_retrieval
from gr_jax.stages.runs import (
  append,
  embed,
  evaluate,
  pipeline,
  recommend,
  refit,
  remove,
  restore,
  tokenize,
  train,
)
from gr_jax.stages.workdir import Workdir
from gr_jax.training.loop import DivergedError

__all__ = [
  "DivergedError",
  "InputError",
  "Request",
  "RetrievalOptions",
  "RunConfig",
  "Stopped",
  "Workdir",
  "append",
  "cold_start",
  "compare",
  "compare_retrieval",
  "compare_tokenizers",
  "embed",
  "evaluate",
  "pipeline",
  "recommend",
  "refit",
  "remove",
  "report",
  "restore",
  "tokenize",
  "train",
]
