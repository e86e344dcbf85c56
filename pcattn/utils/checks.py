"""Checks of arguments, shared by the operations, the attention mechanisms and the networks.

Shapes, dtypes and devices are always checked. Values are checked only on the CPU: reading them on a GPU would wait for
the device, and a compiled graph has no values yet.
"""

import operator

import torch
from torch import Tensor

from pcattn.utils.errors import InputError


def reads_values(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_points(name: str, points: Tensor) -> None:
    """Require floating-point points (B, N, D) with at least one cloud and one point."""
    if points.dim() != 3 or 0 in points.shape:
        raise InputError(f"expected {name} to be (B, N, D) and not empty, but got shape {tuple(points.shape)}")
    check_floating(name, points)


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a floating-point dtype."""
    if not tensor.is_floating_point():
        raise InputError(f"expected {name} to be floating point, but got {tensor.dtype}")


def check_dtype(name: str, tensor: Tensor, like: Tensor, of_what: str) -> None:
    """Require the floating-point dtype of `like`; under autocast, any floating-point dtype."""
    check_floating(name, tensor)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(tensor.device.type):
        return
    if tensor.dtype != like.dtype:
        raise InputError(f"expected {name} to be {like.dtype}, the dtype of {of_what}, but got {tensor.dtype}")


def check_device(**tensors: Tensor | None) -> None:
    """Require all tensors on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise InputError(f"expected all tensors on one device, but got {got}")


def check_finite(name: str, points: Tensor, lengths: Tensor | None = None) -> None:
    """Require real points (B, N, D) without NaN and infinity, for which no answer would be right."""
    if not reads_values(points) or bool(points.detach().isfinite().all()):
        return
    broken = ~points.detach().isfinite().all(dim=2)  # (B, N)
    if lengths is not None:
        broken &= torch.arange(points.shape[1]) < lengths[:, None]
    if bool(broken.any()):
        cloud, point = broken.nonzero()[0].tolist()
        values = ", ".join(f"{value:g}" for value in points[cloud, point].tolist()[:3])
        raise InputError(f"expected {name} to be finite, but point {point} of cloud {cloud} is ({values})")


def check_lengths(name: str, lengths: Tensor | None, points: Tensor, smallest: int) -> None:
    """Require numbers of points (B,) in [smallest, N] for clouds (B, N, D). On a GPU, operations clamp them instead."""
    if lengths is None:
        return
    if lengths.shape != points.shape[:1] or not is_integer(lengths):
        raise InputError(
            f"expected {name} to be integers of shape {tuple(points.shape[:1])}, "
            f"but got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if reads_values(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < smallest or high > points.shape[1]:
            raise InputError(f"expected {name} in [{smallest}, {points.shape[1]}], but got {low} to {high}")


def check_indices(name: str, indices: Tensor, num_points: int) -> None:
    """Require integer indices (B, ...) in [0, num_points).

    All clouds of a batch are gathered at once, so an index out of range would silently select a point of another cloud.
    """
    if not is_integer(indices):
        raise InputError(f"expected {name} to be integers, but got {indices.dtype}")
    if not reads_values(indices) or not indices.numel():
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= num_points:
        cloud = int(((indices < 0) | (indices >= num_points)).flatten(1).any(dim=1).nonzero()[0])
        got = low if low < 0 else high
        raise InputError(f"expected {name} in [0, {num_points}), the points of a cloud, but got {got} (cloud {cloud})")


def check_labels(name: str, labels: Tensor, num_classes: int, clouds: Tensor | None = None) -> None:
    """Require integer labels (B,) or (B, N) in [0, num_classes).

    Args:
        name: their name in messages.
        labels: of clouds or of points.
        num_classes: number of classes.
        clouds: (B,), indices of the clouds in their data set, for messages.
    """
    if not is_integer(labels):
        raise InputError(f"expected {name} to be integers, but got {labels.dtype}")
    if not reads_values(labels) or not labels.numel():
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        where = ((labels < 0) | (labels >= num_classes)).nonzero()[0].tolist()
        cloud = f"cloud {where[0]} of the batch" if clouds is None else f"cloud {int(clouds[where[0]])} of the data set"
        point = "".join(f"point {index} of " for index in where[1:])
        got = int(labels[tuple(where)])
        raise InputError(f"expected {name} in [0, {num_classes}), but got {got} for {point}{cloud}")


def check_count(name: str, count: int, most: int, of_what: str) -> int:
    """Require a number of points in [1, most] and return it as an int; NumPy integers and tensors are accepted."""
    if not isinstance(count, (int, torch.SymInt)):
        try:
            count = operator.index(count)
        except TypeError:
            raise InputError(f"expected {name} to be an integer, but got {count!r}") from None
    if isinstance(count, bool) or not 1 <= count <= most:
        raise InputError(f"expected 1 <= {name} <= {most} ({of_what}), but got {name}={count}")
    return count


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds integers; booleans do not count."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
