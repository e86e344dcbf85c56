"""Local aggregation after its first linear map, with checked arguments, and the maximum over all points of a cloud."""

from torch import Tensor, nn

from pcattn.ops.backends import Kernels
from pcattn.ops.batch_norm import op as batch_norm
from pcattn.ops.local_aggregation import reference
from pcattn.utils.checks import check_indices
from pcattn.utils.errors import InputError


def aggregate(
    points: Tensor,
    centers: Tensor,
    neighbors: Tensor,
    first: nn.Module,
    linear: nn.Module,
    second: nn.Module,
    backend: str = "auto",
) -> Tensor:
    r"""Maximum over the neighbors of each center,

    .. math::
        y_i = \max_{j \in \mathcal{N}(i)} \mathrm{ReLU}(\mathrm{BN}_2(W\, \mathrm{ReLU}(\mathrm{BN}_1(p_j + c_i)))) .

    In training both normalizations update their running statistics.

    Args:
        points: p, (B, N, C).
        centers: c, (B, M, C).
        neighbors: (B, M, k), indices of the neighbors of each center.
        first: BN_1, an `nn.BatchNorm1d` or what Lightning puts in its place.
        linear: W, an `nn.Linear` without bias.
        second: BN_2, as `first`.
        backend: `"auto"`, `"numba"` or `"reference"`.

    Shape:
        (B, M, D), where D is the number of output channels of `linear`.

    Raises:
        InputError: the shapes do not fit, on the CPU a neighbor is none of the N points, or `backend` cannot run.
    """
    if neighbors.dim() != 3 or neighbors.shape[:2] != centers.shape[:2] or points.shape[0] != centers.shape[0]:
        raise InputError(
            "expected points (B, N, C), centers (B, M, C) and neighbors (B, M, k), "
            f"but got {tuple(points.shape)}, {tuple(centers.shape)} and {tuple(neighbors.shape)}"
        )
    check_indices("neighbors", neighbors, points.shape[1])
    kernels = _KERNELS.choose(backend, points, first, second)
    return kernels.aggregate(points, centers, neighbors, first, linear, second)


def pool(x: Tensor, linear: nn.Module, norm: nn.Module, backend: str = "auto") -> Tensor:
    """Maximum over the points of BN(linear(x)).

    BN is monotone in every channel, so the CPU kernel normalizes only the maxima. In training the running statistics
    are updated.

    Args:
        x: (B, N, C).
        linear: an `nn.Linear` with or without bias.
        norm: BN, an `nn.BatchNorm1d` or what Lightning puts in its place.
        backend: `"auto"`, `"numba"` or `"reference"`.

    Shape:
        (B, D), where D is the number of output channels of `linear`.

    Raises:
        InputError: `backend` cannot run; the message lists the reasons.
    """
    return _KERNELS.choose(backend, x, norm).pool(x, linear, norm)


def _why_not_numba(x: Tensor, *norms: nn.Module) -> list[str]:
    """Reasons why the compiled passes cannot run on features x (B, N, C)."""
    reasons = batch_norm.why_not_numba(x, *norms)
    if not x.requires_grad:
        reasons.append("the features do not require gradients")
    return reasons


_KERNELS = Kernels(reference, numba=_why_not_numba)
