"""Coordinates of the probability simplex in which maps act and distances are measured."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def contrast_matrix(classes: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "classes coordinates"]:
    """Helmert contrasts V, (K, K-1): orthonormal columns, each orthogonal to (1, ..., 1).

    >>> contrast_matrix(3)
    tensor([[ 0.7071,  0.4082],
            [-0.7071,  0.4082],
            [ 0.0000, -0.8165]], dtype=torch.float64)
    """
    matrix = torch.zeros(classes, classes - 1, dtype=dtype)
    for column in range(classes - 1):
        n = column + 1
        scale = 1.0 / math.sqrt(n * (n + 1))
        matrix[:n, column] = scale
        matrix[n, column] = -n * scale
    return matrix


def log_ratio_coordinates(
    log_probability: Float[Tensor, "jets classes"],
) -> Float[Tensor, "jets coordinates"]:
    """Isometric log-ratio z = Vᵀ ln p, (N, K) to (N, K-1).

    Euclidean distance in z is the Aitchison distance of the simplex
    (Egozcue et al. 2003; used for flavour taggers in arXiv 2605.01363). An offset
    common to all classes drops out, so unnormalised logits may be given.

    >>> p = torch.tensor([[0.7, 0.1, 0.2]], dtype=torch.float64)
    >>> log_ratio_coordinates(p.log())
    tensor([[1.3760, 0.2285]], dtype=torch.float64)
    >>> log_probability_from_coordinates(log_ratio_coordinates(p.log())).exp()
    tensor([[0.7000, 0.1000, 0.2000]], dtype=torch.float64)
    """
    return log_probability @ contrast_matrix(log_probability.shape[1], log_probability.dtype)


def log_probability_from_coordinates(
    coordinates: Float[Tensor, "jets coordinates"],
) -> Float[Tensor, "jets classes"]:
    """Inverse of :func:`log_ratio_coordinates`: ln p = V z - ln Σ exp(V z)."""
    matrix = contrast_matrix(coordinates.shape[1] + 1, coordinates.dtype)
    return torch.log_softmax(coordinates @ matrix.T, dim=1)
