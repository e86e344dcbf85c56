"""Axial attention on shuffled points of a grid against the released axial attention on images."""

import pytest
import torch

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.attention.axial import PairNorm, PencilAttention
from pcattn.bench.attention import peak_memory
from pcattn.ops.axial_attention import pencil_attention, pencil_variances
from pcattn.ops.batch_norm import normalize
from tests.attention.attention_cases import assert_near, grid_positions, load_linear, load_norm, load_parameter


def load_pencils(arrays, prefix, axis, gated=False):
    weight, table = arrays[f"{prefix}_Wqkv"], arrays[f"{prefix}_rel"]
    pencils = PencilAttention(
        weight.shape[1], weight.shape[0] // 2, axis, int(arrays["groups"]), (table.shape[1] + 1) // 2, gated, cell=1.0
    ).double()
    load_linear(pencils.qkv, weight)
    load_parameter(pencils.relative, table)
    load_norm(pencils.qkv_norm, arrays, f"{prefix}_qkv")
    load_norm(pencils.out_norm, arrays, f"{prefix}_out")
    load_parameter(pencils.logit_norm.weight, arrays[f"{prefix}_sim_gamma"])
    load_parameter(pencils.logit_norm.running_var, arrays[f"{prefix}_sim_var"])
    return pencils.eval()


@pytest.fixture
def image(load_fixture):
    """The arrays, features and geometry of the shuffled pixels, and a function that shuffles an image."""
    arrays = load_fixture("axial")
    batch, height, width, channels = arrays["x"].shape
    order = torch.randperm(height * width)
    pos = grid_positions(height, width)[order].expand(batch, -1, -1)
    x = arrays["x"].view(batch, -1, channels)[:, order]
    return arrays, x, Geometry(pos), lambda y: y.flatten(1, 2)[:, order]


@pytest.fixture(params=[None, 1, 1 << 20], ids=["pencil by pencil", "small blocks", "large blocks"], autouse=True)
def _blocks(request, monkeypatch):
    """The numba kernels, and the reference in small and in large blocks."""
    if request.param is not None:
        monkeypatch.setattr("pcattn.ops.backends.is_installed", lambda module: False)
        monkeypatch.setattr("pcattn.ops.axial_attention.reference._BLOCK_ELEMENTS", {"cpu": request.param})


def test_equals_image_layers(image):
    arrays, x, geometry, shuffled = image
    scale = max(1, arrays["y_height_width"].abs().max())
    after_height = load_pencils(arrays, "h", 0)(x, geometry)
    assert_near(after_height, shuffled(arrays["y_height"]), atol=1e-12 * scale)
    after_width = load_pencils(arrays, "w", 1)(after_height, geometry)
    assert_near(after_width, shuffled(arrays["y_height_width"]), atol=1e-12 * scale)


def test_gated_equals_image_layer(image):
    arrays, x, geometry, shuffled = image
    scale = max(1, arrays["y_height_width"].abs().max())
    gated = load_pencils(arrays, "h", 0, gated=True)
    gates = torch.tensor([0.1, 0.1, 1, 0.1], dtype=torch.float64)
    assert_near(gated.gates, gates, atol=1e-8)  # initial values, rounded to float32
    load_parameter(gated.gates, gates)
    assert_near(gated(x, geometry), shuffled(arrays["y_height_gated"]), atol=1e-12 * scale)
    load_parameter(gated.gates, torch.ones(4))
    assert_near(gated(x, geometry), shuffled(arrays["y_height"]), atol=1e-12 * scale)


@pytest.mark.parametrize(("prefix", "axis"), [("h", 0), ("w", 1)])
def test_weights_equal_fixture(load_fixture, prefix, axis):
    """With an identity matrix as values, the result is the matrix of weights."""
    arrays = load_fixture("axial")
    pencils = load_pencils(arrays, prefix, axis)
    batch, height, width, _ = arrays["x"].shape
    x = (arrays["x"] if prefix == "h" else arrays["y_height"]).flatten(1, 2)
    geometry = Geometry(grid_positions(height, width).expand(batch, -1, -1))
    q, k, _ = (
        normalize(pencils.qkv_norm, pencils.qkv(x))
        .unflatten(-1, (pencils.num_groups, -1))
        .split(pencils.widths, dim=-1)
    )
    relative_q, relative_k, _ = pencils.relative.split(pencils.widths)
    identity = torch.eye(height * width, dtype=x.dtype).expand(batch, pencils.num_groups, -1, -1).transpose(1, 2)
    layout = geometry.pencils(axis, cell=1.0)
    tables = q @ relative_q, k @ relative_k
    weights, mass = pencil_attention(q, k, identity, *tables, pencils.logit_norm(q, k, *tables, *layout), *layout)
    assert_near(mass.sum(dim=-1), torch.ones_like(mass[..., 0]))
    weights = weights.view(batch, height, width, -1, height, width)
    line = torch.arange(width if axis == 0 else height)
    across = (
        weights[:, :, line, :, :, line].permute(1, 0, 3, 2, 4)
        if axis == 0
        else weights[:, line, :, :, line].permute(1, 0, 3, 2, 4)
    )
    assert_near(across.flatten(0, 1), arrays[f"attn_{prefix}"])


def reference(pencils, x):
    """The equation of the layer in training mode, for one pencil with all points."""
    pos = torch.arange(x.shape[1])
    size = pencils.relative.shape[1]
    entry = (pos[:, None] - pos[None] + size // 2).clamp(0, size - 1)
    q, k, v = (
        normalize(pencils.qkv_norm, pencils.qkv(x))
        .unflatten(-1, (pencils.num_groups, -1))
        .split(pencils.widths, dim=-1)
    )
    r_q, r_k, r_v = (r[:, entry] for r in pencils.relative.split(pencils.widths))  # (g, N, N)
    maps = torch.stack(
        (
            torch.einsum("bigc,bjgc->bgij", q, k),
            torch.einsum("bigc,cij->bgij", q, r_q),
            torch.einsum("bjgc,cji->bgij", k, r_k),
        )
    )
    variance = maps.var(dim=(1, 3, 4), correction=0)
    scale = pencils.logit_norm.weight / (variance + pencils.logit_norm.eps).sqrt()
    weights = (maps * scale[:, None, :, None, None]).sum(dim=0).softmax(dim=-1)
    sums = torch.einsum("bgij,bjgc->bigc", weights, v), torch.einsum("bgij,cij->bigc", weights, r_v)
    out = normalize(pencils.out_norm, torch.stack(sums, dim=-1).flatten(2)).unflatten(-1, (-1, 2)).sum(dim=-1)
    return out, variance, maps.var(dim=(1, 3, 4))


def test_one_pencil_is_full_attention_with_relative_terms():
    """Distances are clamped to the table, and training updates the running variances."""
    pencils = PencilAttention(8, 8, axis=1, num_groups=2, span=4, cell=1.0).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    geometry = Geometry(grid_positions(1, 9).expand(2, -1, -1))
    expected, variance, unbiased = reference(pencils, x)
    assert_near(pencils(x, geometry), expected)
    assert_near(pencils.logit_norm.running_var, 0.9 + 0.1 * unbiased)
    assert (variance - variance.mean()).abs().max() > 1e-3  # the maps differ, so the test tells them apart


def test_batch_statistics_are_over_valid_pairs():
    """With pencils of different lengths, the variance is over all pairs of points that share a pencil."""
    pos = grid_positions(5, 4)[torch.tensor([0, 1, 2, 4, 5, 8, 9, 10, 11, 16])][None]
    layout = Geometry(pos).pencils(1, cell=1.0)
    q, k, q_table, k_table = (torch.randn(1, 10, 2, size, dtype=torch.float64) for size in (3, 3, 7, 7))
    variances, num_pairs = pencil_variances(q, k, q_table, k_table, *layout)
    same = (pos[:, :, None, 0] == pos[:, None, :, 0])[0]
    entry = (pos[0, :, None, 1] - pos[0, None, :, 1] + 3).long()
    content = torch.einsum("bigc,bjgc->bgij", q, k)[0]
    from_q = q_table[0].transpose(0, 1).gather(2, entry.expand(2, -1, -1))
    from_k = k_table[0].transpose(0, 1).gather(2, entry.expand(2, -1, -1)).transpose(1, 2)
    expected = torch.stack([values[:, same].var(dim=1, correction=0) for values in (content, from_q, from_k)])
    assert_near(variances, expected)
    assert num_pairs == same.sum()


def test_gradients_of_the_operations():
    pos = torch.rand(2, 9, 3, dtype=torch.float64)
    layout = Geometry(pos).pencils(0, grid=2)
    inputs = [torch.randn(2, 9, 2, size, dtype=torch.float64, requires_grad=True) for size in (2, 2, 3, 3, 3)]
    scales = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    q, k, v, *tables = inputs
    assert torch.autograd.gradcheck(
        lambda *a: pencil_attention(*a, *layout), (q, k, v, *tables, scales), fast_mode=True
    )
    assert torch.autograd.gradcheck(lambda *a: pencil_variances(*a, *layout)[0], (q, k, *tables), fast_mode=True)
    torch.library.opcheck(torch.ops.pcattn.pencil_attention.default, (q, k, v, *tables, scales, *layout))
    torch.library.opcheck(torch.ops.pcattn.pencil_variances.default, (q, k, *tables, *layout))


def test_default_pencils_on_a_surface_have_about_20_points():
    for num_points in (256, 1024, 4096, 16384):
        pos = torch.nn.functional.normalize(torch.randn(1, num_points, 3), dim=-1)
        for axis in range(3):
            lengths = torch.unique_consecutive(Geometry(pos).pencils(axis).label, return_counts=True)[1].double()
            assert 8 < lengths.square().sum().item() / num_points < 60


def test_isolated_and_equal_points():
    """With one point per pencil the result is finite, and equal points have equal results."""
    core = build_attention("axial", 8, grid=1000).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    assert core(x, Geometry(torch.rand(1, 6, 3, dtype=torch.float64))).isfinite().all()
    same = core(x[:, :1].expand(1, 6, 8), Geometry(torch.ones(1, 6, 3, dtype=torch.float64)))
    assert_near(same, same[:, :1].expand_as(same))


def test_many_copies_of_one_point_take_little_memory(monkeypatch):
    """They share one pencil, whose pairs are not all in memory at once."""
    monkeypatch.setattr("pcattn.ops.axial_attention.reference._BLOCK_ELEMENTS", {"cpu": 1 << 18})
    core = build_attention("axial", 8, num_groups=2, axes="x")
    x, geometry = torch.randn(1, 4096, 8, requires_grad=True), Geometry(torch.ones(1, 4096, 3))
    one_map = 2 * 4096**2 * 4  # bytes for one map of all pairs
    assert peak_memory(lambda: core(x, geometry).sum().backward()) < one_map / 2


def test_any_number_of_threads():
    core = build_attention("axial", 16).double()
    x, pos = torch.randn(2, 50, 16, dtype=torch.float64), torch.rand(2, 50, 3)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        core.zero_grad()
        y = core(x, Geometry(pos))
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in core.parameters())])
    torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 10, 16), (1, 40, 16), (2, 41, 16)])
def test_features_of_other_points_are_refused(training, shape):
    """Also without the checks of `build_attention`, because the kernel would read out of bounds."""
    core = ATTENTION["axial"](16).train(training)
    with pytest.raises(ValueError, match=r"of \(2, 40\) points, as the pencils have, but got shape"):
        core(torch.randn(shape), Geometry(torch.randn(2, 40, 3)))


def test_pair_norm_starts_as_identity():
    norm = PairNorm(3, 2).eval()
    assert_near(norm(*[torch.empty(0)] * 7), torch.ones(3, 2), atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"axes": "xw"}, "letters of 'xyz'"),
        ({"axes": ""}, "letters of 'xyz'"),
        ({"num_groups": 3}, "divisible by 2 \\* num_groups"),
        ({"span": 0}, "span >= 1"),
        ({"grid": 0}, "grid >= 1"),
        ({"cell": -1.0}, "cell > 0"),
    ],
)
def test_exceptions(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_attention("axial", 16, **kwargs)
