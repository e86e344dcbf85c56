"""Point clouds of NumPy, torch, Open3D and torch-geometric as positions and named channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def turn(vectors: Tensor, up: str, target: str) -> Tensor:
    """Rotate vectors by a right angle so that what points along the axis `up` points along `target`.

    The third axis stays as it is: from y to z, (x, y, z) becomes (x, -z, y).

    Args:
        vectors: (N, 3), positions or normals.
        up, target: `"x"`, `"y"` or `"z"`.

    Shape:
        (N, 3).

    Raises:
        InputError: an axis has another name.
    """
    if wrong := [axis for axis in (up, target) if axis not in ("x", "y", "z")]:
        raise InputError(f"expected the up axis to be x, y or z, but got {wrong[0]!r}")
    if up == target:
        return vectors
    old, new = "xyz".index(up), "xyz".index(target)
    columns = list(vectors.unbind(dim=1))
    columns[new], columns[old] = columns[old], -columns[new]
    return torch.stack(columns, dim=1)


class TurnedBlocks:
    """The blocks of a cloud with the axis `up` turned to `target`, positions and normals. Can be iterated again.

    Args:
        blocks: clouds that `as_points` takes.
        names: names of the requested channels, see `as_points`.
        up, target: see `turn`.
    """

    def __init__(self, blocks: Iterable[Any], names: Sequence[str], up: str, target: str) -> None:
        self.blocks, self.names, self.up, self.target = blocks, names, up, target

    def __iter__(self) -> Iterator[Points]:
        first = 0
        for block in self.blocks:
            pos, channels, names = as_points(block, self.names, first)
            first += len(pos)
            normals = [names.index(name) for name in GROUPS["normals"] if name in names]
            if channels is not None and len(normals) == 3:
                channels = channels.clone()
                channels[:, normals] = turn(channels[:, normals], self.up, self.target)
            yield Points(turn(pos, self.up, self.target), channels, names)


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
