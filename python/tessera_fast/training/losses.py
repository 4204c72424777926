"""The losses of training, from their formulas. N pixels of a batch, P width of the projector,
E width of the embedding, K width of a prefix.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OFF_DIAGONAL = 5e-3  # weight of the redundancy term of Barlow Twins, and of the mixup term
_VARIANCE_EPS = 1e-5  # a column that is constant in a batch stays finite


def standardized(z: Tensor) -> Tensor:
    """(z - mean) / sqrt(var + 1e-5) of every column over the batch. z (N, P), float32 or wider.

    The variance is the population's, so that a correlation of a column with itself is 1.
    """
    centred = z - z.mean(0)
    return centred / torch.sqrt(centred.square().mean(0) + _VARIANCE_EPS)


def correlation_squared(u: Tensor, v: Tensor) -> Tensor:
    """|u' v / N|^2, the sum over all pairs of columns. u, v (N, P) -> scalar.

    As |u' v|^2 = sum (u u' * v v'), the smaller of (P, P) and (N, N) is made.
    """
    n, width = u.shape
    product = (u @ u.T) * (v @ v.T) if n < width else (u.T @ v).square()
    return product.sum() / n**2


def barlow_twins(z1: Tensor, z2: Tensor) -> Tensor:
    """sum_i (C_ii - 1)^2 + 5e-3 sum_{i != j} C_ij^2, C the correlation of two standardised views.

    z1, z2 (N, P) -> scalar. C = z1' z2 / N.
    """
    diagonal = (z1 * z2).mean(0)
    off = correlation_squared(z1, z2) - diagonal.square().sum()
    return (diagonal - 1).square().sum() + OFF_DIAGONAL * off


def mixup(z1: Tensor, z2: Tensor, mixed: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """How far the correlations of mixed inputs are from the mixture of the correlations.

    ``mixed`` (N, P) belongs to the inputs a x1 + (1 - a) x2[order], ``share`` is a; all three are
    standardised. With C the correlation: 5e-3 (|C(zm, z1) - (a C(z1, z1) + (1 - a) C(z2[p], z1))|^2
    + the same with z2 as the second view) -> scalar. C is linear in its first argument.
    """
    error = mixed - (share * z1 + (1 - share) * z2[order])
    return OFF_DIAGONAL * (correlation_squared(error, z1) + correlation_squared(error, z2))


def imitation(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine + mean squared error, averaged over the batch. student, teacher (N, K) -> scalar.

    The error is relative to the teacher's mean square, so that both terms are of order 1.
    """
    cosine = F.cosine_similarity(student, teacher, dim=-1).mean()
    return 1 - cosine + F.mse_loss(student, teacher) / teacher.square().mean()


def fake_int8(e: Tensor) -> Tensor:
    """e as int8 of a pixel would give it back; the gradient passes as if nothing were rounded.

    e (N, K) -> (N, K); scale = max|e| / 127 of a row, codes rounded half to even.
    """
    scale = (e.detach().abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(e.dtype).tiny)
    return e + (torch.round(e / scale) * scale - e).detach()


def rankme(x: Tensor) -> float:
    """Entropy of the singular values over their sum, by its largest value log(min(N, K)): 0 to 1.

    x (N, K) of a batch, not centred. The RankMe of the literature is min(N, K) to this power.
    """
    values = torch.linalg.svdvals(x.detach().float())
    p = values / values.sum()
    p = p[p > 0]
    return float(-(p * p.log()).sum()) / math.log(min(x.shape))
