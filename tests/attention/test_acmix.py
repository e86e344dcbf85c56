"""ACmix on points of a grid against the authors' module on an image."""

import pytest
import torch

from pcattn.attention import Geometry, build_attention
from tests.attention.attention_cases import assert_near, grid_positions, knn_linf, load_linear, load_parameter


@pytest.fixture
def image(load_fixture):
    """The arrays, a core with their weights, features and geometry of the shuffled pixels, and their inverse order."""
    arrays = load_fixture("acmix")
    batch, height, width, dim = arrays["x"].shape
    size, num_heads = int(arrays["kernel_conv"]), int(arrays["head"])
    # The module measures positions from -1 to 1, x along the width, and its convolution in pixels.
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1), 1])
    pixel = grid_positions(height, width)[:, [1, 0, 2]]
    middle = (size - 1) / 2
    kernel_points = [[column - middle, row - middle, 0.0] for row in range(size) for column in range(size)]
    spacing = 2 / (width - 1)
    core = build_attention(
        "acmix", dim, num_heads=num_heads, k=size**2, kernel_points=kernel_points, sigma=1.0, spacing=spacing
    ).double()
    load_linear(core.q, arrays["Wq"], arrays["bq"])
    load_linear(core.k_proj, arrays["Wk"], arrays["bk"])
    load_linear(core.v, arrays["Wv"], arrays["bv"])
    load_linear(core.position, torch.cat((arrays["Wp"], torch.zeros(len(arrays["Wp"]), 1)), dim=1))
    load_linear(core.mix, arrays["Wfc"])
    order = torch.randperm(height * width)
    geometry = Geometry((pixel * scale - torch.tensor([1.0, 1, 0]))[order].expand(batch, -1, -1), knn_linf)
    x = arrays["x"].flatten(1, 2)[:, order]
    return arrays, core, x, geometry, order.argsort()


def paths(core, x, geometry):
    q, k, v = (project(x).unflatten(-1, (core.num_heads, -1)) for project in (core.q, core.k_proj, core.v))
    return core.attention_path(q, k, v, geometry), core.conv_path(q, k, v, geometry)


def test_convolution_equals_image_everywhere(image):
    arrays, core, x, geometry, inverse = image
    expected = arrays["out_conv_init"].flatten(1, 2)
    assert_near(core.conv, arrays["Wdep_init"].flatten(2))  # initialized to shifts
    assert_near(paths(core, x, geometry)[1][:, inverse], expected)
    load_parameter(core.conv, arrays["Wdep"])
    assert_near(paths(core, x, geometry)[1][:, inverse], arrays["out_conv"].flatten(1, 2))


def test_attention_and_mixture_equal_image_in_the_interior(image):
    """The image is padded by reflection at the border, which a set of points does not have."""
    arrays, core, x, geometry, inverse = image

    def interior(y):
        return y[:, inverse].view(arrays["x"].shape)[:, 1:-1, 1:-1]

    assert_near(interior(paths(core, x, geometry)[0]), arrays["out_att"][:, 1:-1, 1:-1])
    assert_near(interior(core(x, geometry)), arrays["y_init"][:, 1:-1, 1:-1])
    load_parameter(core.conv, arrays["Wdep"])
    load_parameter(core.rate_attention, arrays["rate_att"])
    load_parameter(core.rate_conv, arrays["rate_conv"])
    assert_near(interior(core(x, geometry)), arrays["y"][:, 1:-1, 1:-1])


def test_rates_choose_a_path(cloud):
    core, (x, geometry) = build_attention("acmix", 16).double(), cloud()
    attention, conv = paths(core, x, geometry)
    load_parameter(core.rate_attention, torch.tensor(1.0))
    load_parameter(core.rate_conv, torch.tensor(0.0))
    assert_near(core(x, geometry), attention)
    load_parameter(core.rate_attention, torch.tensor(0.0))
    load_parameter(core.rate_conv, torch.tensor(1.0))
    assert_near(core(x, geometry), conv)


def test_all_neighbors_are_dense_attention(cloud):
    core, (x, geometry) = build_attention("acmix", 16, k=40).double(), cloud()
    q, k, v = (project(x).unflatten(-1, (4, -1)).transpose(1, 2) for project in (core.q, core.k_proj, core.v))
    place = (geometry.pos @ core.position.weight.t())[:, None]  # (B, 1, N, C / h)
    logits = q @ (k - place).transpose(2, 3) + (q * place).sum(dim=-1, keepdim=True)
    expected = ((logits / 2).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    assert_near(paths(core, x, geometry)[0], expected)


def test_convolution_equals_its_equation(cloud):
    core, (x, geometry) = build_attention("acmix", 16, num_heads=2).double(), cloud()
    load_parameter(core.conv, torch.randn_like(core.conv))
    q, k, v = (project(x).unflatten(-1, (2, -1)) for project in (core.q, core.k_proj, core.v))
    maps = torch.einsum("ts,bnsd->bntd", core.mix.weight, torch.cat((q, k, v), dim=2))
    neighbors, offsets = geometry.neighbors(core.k), geometry.offsets(core.k)
    spacing = offsets[:, :, 1:].norm(dim=-1).mean(dim=2)
    distance = (offsets[..., None, :] / spacing[:, :, None, None, None] - core.kernel_points).norm(dim=-1)
    weight = (1 - distance / core.sigma).relu()
    gathered = torch.stack([maps[b][neighbors[b]] for b in range(len(x))])  # (B, N, k, maps, C / h)
    by_output = gathered.repeat_interleave(2, dim=-1)  # output o reads channel o // h
    expected = torch.einsum("bnja,ota,bnjto->bno", weight, core.conv, by_output)
    assert_near(core.conv_path(q, k, v, geometry), expected)


def test_default_kernel_points_are_the_center_and_the_corners_of_a_cube():
    points = build_attention("acmix", 16).kernel_points.double()
    assert points[0].tolist() == [0, 0, 0]
    assert_near(points[1:].norm(dim=1), torch.ones(8).double(), atol=1e-6)
    edge = 2 / 3**0.5  # distances of corners: edges, diagonals of faces, diagonal of the cube
    expected = torch.tensor([0.0] + [edge] * 3 + [edge * 2**0.5] * 3 + [2.0]).double().expand(8, -1)
    assert_near(torch.cdist(points[1:], points[1:]).sort(dim=1).values, expected, atol=1e-6)


def test_does_not_depend_on_the_scale_of_the_convolution(cloud):
    core, (x, geometry) = build_attention("acmix", 16).double(), cloud()
    expected = paths(core, x, geometry)[1]
    assert_near(paths(core, x, Geometry(1000 * geometry.pos + 50))[1], expected, atol=1e-9)


def test_equal_points(cloud):
    core, (x, _) = build_attention("acmix", 16).double(), cloud()
    assert core(x, Geometry(torch.zeros(2, 40, 3, dtype=torch.float64))).isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "divisible by num_heads"),
        ({"k": 0}, "k >= 1"),
        ({"sigma": 0.0}, "sigma > 0"),
        ({"spacing": -1.0}, "spacing > 0"),
        ({"kernel_points": [[0.0, 1.0]]}, "list of \\[x, y, z\\]"),
    ],
)
def test_exceptions(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_attention("acmix", 16, **kwargs)
