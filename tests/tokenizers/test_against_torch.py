"""FSQ numbering and residual quantization beside vector-quantize-pytorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.tokenizers import estimators, fsq, quantizer

torch = pytest.importorskip("torch")
peer = pytest.importorskip("vector_quantize_pytorch")


def test_fsq_numbers_vectors_alike():
  levels = (8, 5, 4)
  theirs = peer.FSQ(levels=list(levels))
  codes = np.arange(np.prod(levels), dtype=np.int32)
  digits = fsq.code_to_digits(jnp.asarray(codes), levels)
  values = theirs.indices_to_codes(torch.from_numpy(codes).long()).numpy()
  # They spread level i over -1 .. 1 from -(levels // 2): shift to integers.
  half = np.array(levels) // 2
  np.testing.assert_array_equal(np.round(values * half + half), digits)


def test_residual_quantization_agrees():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(50, 6)).astype(np.float32)
  books = rng.normal(size=(3, 8, 6)).astype(np.float32)
  theirs = peer.ResidualVQ(
    dim=6, num_quantizers=3, codebook_size=8, kmeans_init=False
  )
  for layer, book in zip(theirs.layers, books, strict=True):
    layer._codebook.embed.data.copy_(torch.from_numpy(book)[None])
  theirs.eval()
  quantized, codes, _ = theirs(torch.from_numpy(z)[None])
  params = {f"codebook_{i}": jnp.asarray(b) for i, b in enumerate(books)}
  out = quantizer.ResidualQuantizer((8, 8, 8), 6).apply(
    {"params": params}, jnp.asarray(z)
  )
  np.testing.assert_array_equal(out.codes, codes[0].numpy())
  np.testing.assert_allclose(
    out.quantized, quantized[0].detach().numpy(), rtol=1e-5, atol=1e-5
  )


def test_rotation_trick_gradients_agree():
  internals = pytest.importorskip(
    "vector_quantize_pytorch.vector_quantize_pytorch"
  )
  if not hasattr(internals, "rotate_to"):
    pytest.skip("this version has no rotate_to")
  rng = np.random.default_rng(0)
  z, q, w = rng.normal(size=(3, 4, 5)).astype(np.float32)
  source = torch.from_numpy(z).requires_grad_()
  (
    internals.rotate_to(source, torch.from_numpy(q)) * torch.from_numpy(w)
  ).sum().backward()
  ours = jax.grad(
    lambda z: jnp.sum(
      estimators.rotation_trick(z, jnp.asarray(q)) * jnp.asarray(w)
    )
  )(jnp.asarray(z))
  np.testing.assert_allclose(ours, source.grad.numpy(), rtol=1e-4, atol=1e-5)
