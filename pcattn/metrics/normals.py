"""Errors of estimated normals."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pcattn.utils.checks import check_device, check_floating
from pcattn.utils.errors import InputError


def cosine_distance(predicted: Tensor, target: Tensor, oriented: bool = True) -> Tensor:
    r"""Cosine distance :math:`1 - \cos\angle(n, \hat n)` of every normal; its mean is the loss of PCT section 4.3.

    Args:
        predicted: normals (..., 3) of any length. A normal of length zero is perpendicular to every other.
        target: normals (..., 3) of any length.
        oriented: if false, a normal and its opposite are equal: :math:`1 - |\cos|`.

    Shape:
        (...,), in [0, 2].

    Raises:
        InputError: shapes, dtypes or devices differ.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([1.0, 0, 0]), torch.tensor([0, 2.0, 0])
        >>> float(cosine_distance(x, y)), float(cosine_distance(x, -x)), float(cosine_distance(x, -x, oriented=False))
        (1.0, 2.0, 0.0)
    """
    _check(predicted, target)
    cosine = cosine_similarity(_rescale(predicted), _rescale(target), dim=-1)
    return 1 - (cosine if oriented else cosine.abs())


def angle_error(predicted: Tensor, target: Tensor, oriented: bool = True) -> Tensor:
    r"""Angle between predicted and true normals in degrees, :math:`\mathrm{atan2}(|n \times \hat n|, n \cdot \hat n)`.

    Unlike the arc cosine it keeps its precision near 0 and 180 degrees.

    Args:
        predicted: normals (..., 3) of any length. A normal of length zero is perpendicular to every other.
        target: normals (..., 3) of any length.
        oriented: if false, a normal and its opposite are equal, and angles are at most 90 degrees.

    Shape:
        (...,), in [0, 180].

    Raises:
        InputError: shapes, dtypes or devices differ.

    Example:
        >>> import torch
        >>> x, xy = torch.tensor([1.0, 0, 0]), torch.tensor([-1.0, 1, 0])
        >>> round(float(angle_error(x, xy)), 3), round(float(angle_error(x, xy, oriented=False)), 3)
        (135.0, 45.0)
    """
    _check(predicted, target)
    predicted, target = _rescale(predicted), _rescale(target)
    dot = (predicted * target).sum(dim=-1)
    cross = torch.linalg.cross(predicted, target, dim=-1).norm(dim=-1)
    angle = torch.atan2(cross, dot if oriented else dot.abs()).rad2deg()
    return angle.masked_fill((cross == 0) & (dot == 0), 90.0)


def _check(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape or predicted.dim() == 0 or predicted.shape[-1] != 3:
        raise InputError(
            "expected predicted and target with the same shape (..., 3), "
            f"but got {tuple(predicted.shape)} and {tuple(target.shape)}"
        )
    check_floating("predicted", predicted)
    check_device(predicted=predicted, target=target)
    if predicted.dtype != target.dtype:
        raise InputError(
            f"expected predicted and target with the same dtype, but got {predicted.dtype} and {target.dtype}"
        )


def _rescale(normals: Tensor) -> Tensor:
    """Scale the largest coordinate to 1, so that products neither overflow nor vanish."""
    return normals / normals.detach().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(normals.dtype).tiny)
