"""RQ-VAE in PyTorch, as one would write it: the peer of benchmarks/tokenizers.

The same network, losses, optimizer and batches; data on the device, no host
synchronization in the loop. It spares itself what ours does between rounds
(revival, usage of the whole catalog).
"""

import time

import torch
import torch.nn.functional as F
from torch import nn


def mlp(widths: list[int]) -> nn.Sequential:
  """Linear layers with ReLU between them."""
  layers = []
  for width, after in zip(widths[:-1], widths[1:], strict=True):
    layers += [nn.Linear(width, after), nn.ReLU()]
  return nn.Sequential(*layers[:-1])


class RQVAE(nn.Module):
  """Encoder, residual quantizer, decoder; forward returns the loss."""

  def __init__(self, dim: int, hidden: list[int], code_dim: int, sizes):
    """Makes the networks and codebooks."""
    super().__init__()
    self.encoder = mlp([dim, *hidden, code_dim])
    self.decoder = mlp([code_dim, *hidden[::-1], dim])
    self.codebooks = nn.ParameterList(
      [nn.Parameter(torch.randn(size, code_dim)) for size in sizes]
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns reconstruction + sum of codebook and commitment losses."""
    z = self.encoder(x).float()
    residual, total, loss = z, torch.zeros_like(z), 0.0
    for codebook in self.codebooks:
      with torch.no_grad():
        scores = codebook.square().sum(-1) - 2 * residual @ codebook.T
        codes = scores.argmin(-1)
      q = F.embedding(codes, codebook)
      loss = loss + F.mse_loss(q, residual.detach())
      loss = loss + 0.25 * F.mse_loss(residual, q.detach())
      residual = residual - q.detach()
      total = total + q
    passed = z + (total - z).detach()
    return loss + F.mse_loss(self.decoder(passed).float(), x)


def step_time(
  x, *, hidden, code_dim, sizes, batch_size, steps, how, autocast
) -> float:
  """Seconds per training step, after warming up.

  Args:
    x: float32 [N, D] on the device.
    hidden: Widths of the encoder.
    code_dim: Width of the latent.
    sizes: Codes per level.
    batch_size: Rows a step.
    steps: Steps timed.
    how: "eager", "compile" or "compile-graphs" (CUDA graphs).
    autocast: Compute the networks in bfloat16.
  """
  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  device = x.device
  model = RQVAE(x.shape[1], hidden, code_dim, sizes).to(device)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, fused=device.type == "cuda"
  )
  forward = model
  if how != "eager":
    mode = "reduce-overhead" if how == "compile-graphs" else "default"
    forward = torch.compile(model, mode=mode)

  def step(rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
      loss = forward(x[rows])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach().clone()

  def run(count: int) -> float:
    total, per_epoch = torch.zeros((), device=device), len(x) // batch_size
    for i in range(count):
      if i % per_epoch == 0:
        order = torch.randperm(len(x), device=device)
      start = i % per_epoch * batch_size
      total += step(order[start : start + batch_size])
    return float(total)  # waits for the device

  run(20)
  started = time.perf_counter()
  run(steps)
  return (time.perf_counter() - started) / steps


def kmeans_time(x, num_codes: int, iterations: int) -> float:
  """Seconds per Lloyd iteration by matmul and index_add, in row chunks."""
  torch.set_float32_matmul_precision("highest")
  centers = x[torch.randperm(len(x), device=x.device)[:num_codes]].clone()
  chunk = max(1, (1 << 26) // num_codes)

  def iteration(centers):
    sums = torch.zeros_like(centers)
    counts = torch.zeros(num_codes, device=x.device)
    norms = centers.square().sum(-1)
    for part in x.split(chunk):
      codes = (norms - 2 * part @ centers.T).argmin(-1)
      sums.index_add_(0, codes, part)
      counts += torch.bincount(codes, minlength=num_codes)
    return sums / counts.clamp(min=1)[:, None]

  centers = iteration(centers)
  float(centers.sum())
  started = time.perf_counter()
  for _ in range(iterations):
    centers = iteration(centers)
  float(centers.sum())
  return (time.perf_counter() - started) / iterations


def nearest(x, codebook):
  """Nearest code of every row, at full float32."""
  return (codebook.square().sum(-1) - 2 * x @ codebook.T).argmin(-1)


def encode_residual(x, sizes):
  """Returns a call that encodes rows by residual codebooks."""
  torch.set_float32_matmul_precision("highest")
  books = [torch.randn(size, x.shape[1], device=x.device) for size in sizes]

  def run():
    residual, codes = x, []
    for book in books:
      codes.append(nearest(residual, book))
      residual = residual - book[codes[-1]]
    return torch.stack(codes, -1)

  return run


def encode_subspaces(x, sizes):
  """Returns a call that encodes rows by one codebook a sub-space."""
  torch.set_float32_matmul_precision("highest")
  width = x.shape[1] // len(sizes)
  books = [torch.randn(size, width, device=x.device) for size in sizes]

  def run():
    parts = x.split(width, dim=1)
    codes = [nearest(p, b) for p, b in zip(parts, books, strict=True)]
    return torch.stack(codes, -1)

  return run


def encode_lsh(x, sizes):
  """Returns a call that encodes rows by 3 x 8 signs."""
  del sizes
  torch.set_float32_matmul_precision("highest")
  planes = torch.randn(x.shape[1], 24, device=x.device)
  weights = 2 ** torch.arange(8, device=x.device)

  def run():
    bits = (x @ planes > 0).view(-1, 3, 8)
    return (bits * weights).sum(-1)

  return run


def encode_rqvae(x, sizes):
  """Returns a call that encodes rows by an RQ-VAE's encoder and codebooks."""
  torch.set_float32_matmul_precision("highest")
  model = RQVAE(x.shape[1], [512, 256, 128], 32, sizes).to(x.device)

  @torch.no_grad()
  def run():
    residual, codes = model.encoder(x), []
    for book in model.codebooks:
      codes.append(nearest(residual, book))
      residual = residual - book[codes[-1]]
    return torch.stack(codes, -1)

  return run
