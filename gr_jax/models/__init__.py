"""Networks only: no data, no loss, no loop."""

from gr_jax.models.config import T5Config
from gr_jax.models.decoder_only import DecoderOnly
from gr_jax.models.encoder_decoder import (
  DecodeContext,
  EncoderDecoder,
  shift_right,
)
from gr_jax.models.rq_transformer import RQTransformer
from gr_jax.models.sasrec import SASRec
from gr_jax.models.sharding import logical_axes

# Networks of one interface.
MODELS = {
  "encoder_decoder": EncoderDecoder,
  "decoder_only": DecoderOnly,
  "rq_transformer": RQTransformer,
  "sasrec": SASRec,
}

__all__ = [
  "MODELS",
  "DecodeContext",
  "DecoderOnly",
  "EncoderDecoder",
  "RQTransformer",
  "SASRec",
  "T5Config",
  "logical_axes",
  "shift_right",
]
