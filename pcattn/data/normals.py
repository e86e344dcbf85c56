"""Normals of clouds that come without any."""

from __future__ import annotations

import torch
from torch import Tensor

from pcattn.utils.errors import InputError

#: Points whose neighborhoods are in memory at once.
_CHUNK = 1 << 16


def estimate_normals(pos: Tensor, k: int = 16) -> Tensor:
    r"""Unit normals of the surfaces that clouds were sampled from, directed away from their centroids.

    The normal of a point is the direction in which its k nearest points (itself among them) extend least: the
    eigenvector of the least eigenvalue of :math:`\sum_j (p_j - \bar p)(p_j - \bar p)^T`. Of its two signs, the one with
    :math:`n \cdot (p - c) \ge 0` is taken, c the centroid of the cloud. That is outwards on convex shapes alone, but
    the same wherever the cloud lies and however it is turned. At edges the normals of both faces blend; k copies of one
    point have no normal, and get an arbitrary one.

    Open3D's `estimate_normals` is the same estimate. Open3D is not imported here because it cannot be on every machine
    (it needs system libraries), and a network has to see the same normals wherever it is trained and used.

    Args:
        pos: (B, N, 3), any N from 1 on.
        k: points that a normal is fitted to, at most N of them.

    Shape:
        (B, N, 3), of the type of `pos`.

    Raises:
        InputError: shapes do not fit, or positions are not finite.

    Source: Hoppe et al. 1992, Surface reconstruction from unorganized points, section 3.2.
    """
    from pcattn.ops import gather, knn  # imports a compiler

    if pos.dim() != 3 or pos.shape[1] == 0 or pos.shape[2] != 3:
        raise InputError(f"expected pos (B, N, 3) with N >= 1, but got {tuple(pos.shape)}")
    if not pos.is_floating_point():
        raise InputError(f"expected pos to be floating point, but got {pos.dtype}")
    if k < 1:
        raise InputError(f"expected k >= 1, but got {k}")
    centroid = pos.mean(dim=1, keepdim=True, dtype=torch.float64)
    normals = []
    for part in pos.split(_CHUNK, dim=1):
        near = gather(pos, knn(part, pos, min(k, pos.shape[1])).indices).double()  # (B, M, k, 3)
        near = near - near.mean(dim=2, keepdim=True)
        normal = torch.linalg.eigh(near.mT @ near).eigenvectors[..., 0]  # of the least eigenvalue
        inwards = (normal * (part - centroid)).sum(dim=2, keepdim=True) < 0
        normals.append(torch.where(inwards, -normal, normal).to(pos.dtype))
    return torch.cat(normals, dim=1)
