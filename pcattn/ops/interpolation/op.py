"""Interpolation, with checked arguments."""

from torch import Tensor

from pcattn.ops.interpolation import reference
from pcattn.ops.neighbors.op import knn
from pcattn.utils.checks import check_device, check_floating, check_points
from pcattn.utils.errors import InputError


def interpolate(
    query: Tensor,
    support: Tensor,
    features: Tensor,
    k: int = 3,
    *,
    query_lengths: Tensor | None = None,
    support_lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Interpolate features at `query` from the k nearest support points (PointNet++ section 3.4, equation 2).

    .. math::
        f(q) = \frac{\sum_i w_i f_i}{\sum_i w_i}, \qquad w_i = \frac{1}{\|q - s_i\|^2}

    There is no epsilon. At a support point the result is the feature of that point (the mean if several lie there), and
    it does not depend on the scale of the cloud. Gradients flow to `features` and to the positions. The values of
    `features` are not checked: NaN spreads to every query that has it as a neighbor.

    Args:
        query: (B, M, D).
        support: (B, N, D).
        features: (B, N, C), of the support points.
        k: number of neighbors; clouds with fewer points use all of them.
        query_lengths, support_lengths, backend: see `knn`. Padded queries get zeros.

    Shape:
        (B, M, C), in the dtype of `features`, also under autocast.

    Raises:
        InputError: as `knn`.

    Source: PointNet++, Qi et al. 2017, https://arxiv.org/abs/1706.02413.
    """
    if features.dim() != 3 or features.shape[:2] != support.shape[:2]:
        raise InputError(
            "expected support (B, N, D) and features (B, N, C) with the same B and N, "
            f"but got {tuple(support.shape)} and {tuple(features.shape)}"
        )
    check_points("query", query)
    check_points("support", support)
    check_floating("features", features)
    check_device(support=support, features=features)
    # In float64, squares of coordinates of 1e-30 do not vanish and those of 1e30 do not overflow.
    exact = query.double()
    distances, indices = knn(
        exact,
        exact if query is support else support.double(),
        min(k, support.shape[1]),
        query_lengths=query_lengths,
        support_lengths=support_lengths,
        backend=backend,
    )
    return reference.interpolate(distances, indices, features)
