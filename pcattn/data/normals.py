"""Estimated normals for clouds without normals."""

from __future__ import annotations

import torch
from torch import Tensor

from pcattn.utils.errors import InputError

#: Points whose neighborhoods are held in memory at once.
_CHUNK = 1 << 16


def estimate_normals(pos: Tensor, k: int = 16) -> Tensor:
    r"""Unit normals of the surfaces that clouds were sampled from, directed away from their centroids.

    The normal of a point is the direction in which its k nearest points (itself among them) extend least: the
    eigenvector of the least eigenvalue of :math:`\sum_j (p_j - \bar p)(p_j - \bar p)^T`. Of its two signs, the one with
    :math:`n \cdot (p - c) \ge 0` is taken, c the centroid of the cloud. Only on convex shapes is that always
    outward, but it does not depend on the position and rotation of the cloud. At edges the normals of both faces blend.
    k copies of one point have no normal and get an arbitrary one.

    Open3D's `estimate_normals` computes the same. It is not used because Open3D needs system libraries that some
    machines lack, and a network must see the same normals wherever it is trained and used.

    Args:
        pos: (B, N, 3), any N from 1 on.
        k: number of points a normal is fitted to, at most N.

    Shape:
        (B, N, 3), of the type of `pos`.

    Raises:
        InputError: `pos` has another shape or type, or is not finite, or k < 1.

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
