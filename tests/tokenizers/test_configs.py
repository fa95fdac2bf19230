"""Every tokenizer has a config that builds it, at comparable bits."""

import importlib
import math

import pytest

from gr_jax.stages import config
from gr_jax.tokenizers import TOKENIZERS


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_the_config_builds_its_tokenizer(name):
  module = importlib.import_module(f"configs.tokenizers.{name}")
  built = config.RunConfig.from_dict(module.get_config().to_dict())
  assert type(built.tokenizer) is TOKENIZERS[name]
  bits = math.log2(math.prod(built.tokenizer.codebook_sizes))
  assert bits == (12 if name == "vq_vae" else 24)
  with pytest.raises(ValueError, match="Unknown config argument 'x'"):
    module.get_config("x")
