"""Point clouds of NumPy, torch, Open3D and torch-geometric as positions and named channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcattn.io.channels import GROUPS, canonical, find, members
from pcattn.utils.errors import InputError


class Points(NamedTuple):
    """One cloud, on the CPU."""

    pos: Tensor  #: (N, 3), float32 or float64, as given
    channels: Tensor | None  #: (N, F) the requested channels that the cloud has
    names: list[str]  #: F names


def several(clouds: Any) -> Sequence[Any] | None:
    """The clouds of a list, an array (B, N, C), or a `Batch` or data set of torch-geometric; None if this is one cloud.

    The last two also have a `pos`, which holds the points of all their clouds.
    """
    from torch_geometric.data import Batch, Dataset

    if isinstance(clouds, Batch):
        return list(clouds.to_data_list())
    if isinstance(clouds, Dataset):
        return [clouds[i] for i in range(len(clouds))]
    one = bool(clouds) and _is_row(clouds[0]) if _is_list(clouds) else getattr(clouds, "ndim", 0) != 3
    return None if one else clouds


def as_points(cloud: Any, names: Sequence[str] = (), first: int = 0) -> Points:
    """Positions and channels of one cloud, without needless copies.

    Args:
        cloud: a NumPy array, torch tensor or nested list (N, 3), or (N, 3 + F) with the requested channels; an Open3D
            `PointCloud`, legacy or tensor, with normals and colors; or an object with `pos`, as torch-geometric's
            `Data` (channels `x` (N, F) as requested, or `normal`) and what `read_cloud` returns (`attributes`).
            `Points` are returned as they are.
        names: names of the requested channels: `nx`, `ny`, `nz`, `red`, ... Colors are in [0, 1].
        first: number of its first point in error messages, if it is a block of a larger cloud.

    Raises:
        InputError: another type, several clouds in one object, no points, or coordinates that are not finite. Missing
            channels are not an error.
    """
    if isinstance(cloud, Points):
        return cloud
    of_cloud = getattr(cloud, "batch", None)  # as in torch-geometric: the index of the cloud of every point
    if isinstance(of_cloud, Tensor) and of_cloud.numel() and bool((of_cloud != of_cloud[0]).any()):
        raise InputError(f"expected one cloud, but got {int(of_cloud.max()) + 1} in one object, separated by `batch`")
    attributes: Mapping[str, Any] = {}
    if hasattr(cloud, "pos"):
        pos, attributes = _tensor(cloud.pos), _attributes_of(cloud, names)
    elif hasattr(cloud, "points"):  # open3d.geometry.PointCloud
        pos = _tensor(np.asarray(cloud.points))
        there = {"normals": cloud.has_normals, "colors": cloud.has_colors} if names else {}
        attributes = {name: np.asarray(getattr(cloud, name)) for name, has in there.items() if has()}
    elif hasattr(cloud, "point"):  # open3d.t.geometry.PointCloud
        pos = _tensor(cloud.point["positions"].cpu().numpy())
        attributes = {name: cloud.point[name].cpu().numpy() for name in ("normals", "colors") if name in cloud.point}
    elif _is_list(cloud) or isinstance(cloud, (Tensor, np.ndarray)):
        array = _tensor(cloud)
        if array.dim() != 2 or array.shape[1] not in (3, 3 + len(names)):
            expected = f"(N, {3 + len(names)}): x, y, z, {', '.join(names)}" if names else "(N, 3)"
            hint = ""
            if array.dim() == 2 and array.shape[1] > 3:
                transposed = array.shape[1] > len(array)
                hint = "; with one row per point it is points.T" if transposed else "; the positions are points[:, :3]"
            raise InputError(f"expected points {expected}, but got shape {tuple(array.shape)}{hint}")
        pos, attributes = array[:, :3], dict(zip(names, array[:, 3:].T, strict=False))
    else:
        hint = ": pcattn.io.read_cloud reads a file" if isinstance(cloud, (str, Path)) else ""
        raise InputError(
            "expected a cloud as NumPy array, torch tensor, Open3D PointCloud or torch-geometric Data, "
            f"but got {type(cloud).__name__}{hint}"
        )
    if pos.dim() != 2 or pos.shape[1] != 3 or len(pos) == 0:
        raise InputError(f"expected points (N, 3) and at least one, but got shape {tuple(pos.shape)}")
    _check_finite("coordinates", pos, first)
    columns = _columns(attributes, names)
    for name, column in columns.items():
        if column.shape != (len(pos),):
            raise InputError(f"expected {name} of {len(pos)} points, but got shape {tuple(column.shape)}")
        _check_finite(name, column[:, None], first)
    channels = torch.stack([column.float() for column in columns.values()], dim=1) if columns else None
    return Points(pos, channels, list(columns))


def _attributes_of(cloud: Any, names: Sequence[str]) -> dict[str, Any]:
    """The attributes of an object with `pos`."""
    attributes = dict(getattr(cloud, "attributes", {}))
    for name in ("normal", "normals", "color", "colors"):
        if (values := getattr(cloud, name, None)) is not None:
            attributes[name] = values
    x = getattr(cloud, "x", None)
    if names and x is not None and x.shape[1:] == (len(names),):
        attributes.update(zip(names, x.T, strict=True))
    return attributes


def _columns(attributes: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    """The named channels that the attributes have, each (N,), with integer colors scaled to [0, 1]."""
    columns: dict[str, Tensor] = {}
    for name, values in attributes.items():
        own = members(name)
        wanted = {member: found for member in own if (found := find(member, names)) is not None}
        if not wanted:
            continue
        tensor = _tensor(values)
        kind = values.numpy().dtype if isinstance(values, Tensor) else np.asarray(values).dtype
        if set(GROUPS["colors"]) & set(map(canonical, own)) and kind.kind in "ui":
            tensor = tensor / np.iinfo(kind).max
        parts = [tensor] if tensor.dim() == 1 else list(tensor.T)
        columns.update((wanted[member], part) for member, part in zip(own, parts, strict=False) if member in wanted)
    return columns


def _check_finite(name: str, values: Tensor, first: int) -> None:
    finite = values.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise InputError(
            f"expected finite {name}, but {int((~finite).sum())} of {len(values)} points have NaN or infinity "
            f"(the first is point {first + int(finite.int().argmin())})"
        )


def _tensor(array: Any) -> Tensor:
    """A floating point tensor on the CPU."""
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise InputError(f"expected points without masked values, but got {np.ma.count_masked(array)} of them")
    try:
        tensor = array.detach().cpu() if isinstance(array, Tensor) else torch.from_numpy(_native(np.asarray(array)))
    except (TypeError, ValueError) as error:
        raise InputError(f"expected points as numbers, but got {error}") from error
    if tensor.is_complex():
        raise InputError(f"expected points as real numbers, but got {tensor.dtype}")
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.float64)


def _native(array: np.ndarray) -> np.ndarray:
    """An array that torch accepts: writable, in native byte order, with positive strides."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if native.flags.writeable and min(native.strides, default=0) >= 0 else native.copy()


def _is_list(item: Any) -> bool:
    """Whether this is a plain list. `read_cloud` returns a tuple with `pos`."""
    return isinstance(item, Sequence) and not isinstance(item, str) and not hasattr(item, "pos")


def _is_row(item: Any) -> bool:
    """Whether an item of a list is a point: a sequence of numbers."""
    return isinstance(item, Real) or (_is_list(item) and len(item) > 0 and isinstance(item[0], Real))
