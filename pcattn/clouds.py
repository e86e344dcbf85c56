"""Point clouds as users hold them: NumPy, torch, Open3D and torch-geometric, seen as positions and features."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_several(clouds: Any) -> bool:
    """Whether this is a list of clouds, or an array (B, N, C) of them, and not one cloud."""
    if isinstance(clouds, Sequence) and not isinstance(clouds, str):
        return len(clouds) == 0 or not _is_row(clouds[0])
    return getattr(clouds, "ndim", 0) == 3


def as_points(cloud: Any, num_features: int = 0) -> tuple[Tensor, Tensor | None]:
    """Positions and features of one cloud; nothing is copied that need not be.

    Args:
        cloud: a NumPy array, torch tensor or nested list (N, 3) or, where there are features, (N, 3 + F); an Open3D
            `PointCloud`, legacy or tensor; or an object with `pos`, as torch-geometric's `Data`. Features of the
            latter two are their normals: `normals` or, of `Data`, `x`.
        num_features: channels F of a point beside its position.

    Shape:
        pos (N, 3), floating point as it came, and features (N, F) or None; on the CPU.

    Raises:
        ValueError: none of these, no points, or coordinates that are not finite.
    """
    features: Tensor | None = None
    if isinstance(cloud, (Tensor, np.ndarray, Sequence)) and not isinstance(cloud, str):
        array = _tensor(cloud)
        if array.dim() != 2 or array.shape[1] not in (3, 3 + num_features):
            expected = "(N, 3)" if not num_features else f"(N, {3 + num_features}): positions and features"
            hint = "; positions alone are points[:, :3]" if array.dim() == 2 and array.shape[1] > 3 else ""
            raise ValueError(f"expected points {expected}, but got shape {tuple(array.shape)}{hint}")
        pos, features = array[:, :3], array[:, 3:]
    elif hasattr(cloud, "pos"):
        pos, features = _tensor(cloud.pos), _first(cloud, "normals", "normal", "x")
    elif hasattr(cloud, "points"):  # open3d.geometry.PointCloud
        pos, features = _tensor(np.asarray(cloud.points)), _tensor(np.asarray(cloud.normals))
    elif hasattr(cloud, "point"):  # open3d.t.geometry.PointCloud
        pos = _tensor(cloud.point["positions"].cpu().numpy())
        features = _tensor(cloud.point["normals"].cpu().numpy()) if "normals" in cloud.point else None
    else:
        raise ValueError(
            "expected a cloud as NumPy array, torch tensor, Open3D PointCloud or torch-geometric Data, "
            f"but got {type(cloud).__name__}"
        )
    if pos.dim() != 2 or pos.shape[1] != 3 or len(pos) == 0:
        raise ValueError(f"expected points (N, 3) and at least one, but got shape {tuple(pos.shape)}")
    finite = pos.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise ValueError(
            f"expected finite coordinates, but {int((~finite).sum())} of {len(pos)} points have NaN or infinity "
            f"(the first is point {int(finite.int().argmin())})"
        )
    if not num_features:
        return pos, None
    if features is None or features.shape != (len(pos), num_features):
        got = "none" if features is None or not features.numel() else f"shape {tuple(features.shape)}"
        raise ValueError(f"expected features ({len(pos)}, {num_features}), as in training, but got {got}")
    return pos, features


def _first(cloud: Any, *names: str) -> Tensor | None:
    """The first of these attributes that there is."""
    found = [value for name in names if (value := getattr(cloud, name, None)) is not None]
    return _tensor(found[0]) if found else None


def _tensor(array: Any) -> Tensor:
    """A floating point tensor on the CPU."""
    try:
        tensor = array.detach().cpu() if isinstance(array, Tensor) else torch.from_numpy(_native(np.asarray(array)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected points as numbers, but got {error}") from error
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.float64)


def _native(array: np.ndarray) -> np.ndarray:
    """Numbers as torch takes them: in the machine's byte order, with positive strides, and its own."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if native.flags.writeable and min(native.strides, default=0) >= 0 else native.copy()


def _is_row(item: Any) -> bool:
    """Whether an item of a list is a point: a sequence of numbers."""
    return isinstance(item, Real) or (
        isinstance(item, Sequence) and not isinstance(item, str) and len(item) > 0 and isinstance(item[0], Real)
    )
