"""A `Model` against its network: preparation, draws, and what is said of the points that were not drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

import pcattn
from pcattn.data import estimate_normals
from pcattn.inference import checkpoints
from pcattn.inference import model as inference
from pcattn.inference.clouds import turn
from pcattn.inference.model import Model
from pcattn.io.cloud import Cloud
from pcattn.tasks import Classification, NormalEstimation, PartSegmentation
from pcattn.tasks.voting import draw_views, view_scales
from pcattn.utils.errors import InputError

NETWORK = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}
NAMES = ["bed", "chair", "lamp"]
PARTS = [[0, 1, 2], [3, 4], [5]]
PART_NAMES = ["bed/frame", "bed/mattress", "bed/pillow", "chair/leg", "chair/seat", "lamp/all"]
NUM_POINTS = 32


def classifier(preprocessing: dict[str, Any] | None = None, **kwargs: Any) -> Model:
    task = Classification(3, network_kwargs=NETWORK, class_names=NAMES, **kwargs)
    return Model(task, {"num_points": NUM_POINTS, "preprocessing": preprocessing})


def segmenter(parts: list[list[int]] = PARTS, names: list[str] | None = NAMES, **kwargs: Any) -> Model:
    kwargs = {"network_kwargs": NETWORK, "class_names": names, "part_names": PART_NAMES, **kwargs}
    return Model(PartSegmentation(parts, **kwargs), {"num_points": NUM_POINTS})


def in_unit_sphere(pos: Tensor) -> Tensor:
    pos = pos.double() - pos.double().mean(dim=0)
    return (pos / pos.norm(dim=1).max()).float()


class TestClassify:
    def test_is_the_network_on_the_normalized_cloud(self) -> None:
        model, pos = classifier(), torch.rand(NUM_POINTS, 3)
        with torch.no_grad():
            expected = model.task(in_unit_sphere(pos)[None])[0].softmax(dim=0)
        result = model.classify(pos, top_k=2)
        order = expected.argsort(descending=True)[:2]
        assert result.labels.tolist() == order.tolist()
        assert result.names == [NAMES[label] for label in order]
        np.testing.assert_allclose(result.probabilities, expected[order], rtol=1e-6)

    def test_does_not_depend_on_scale_and_place(self) -> None:
        model, pos = classifier(), torch.rand(500, 3, dtype=torch.float64)
        here, there = model.classify(pos), model.classify(3000 * pos + torch.tensor([5e6, -4e5, 100.0]))
        np.testing.assert_allclose(here.probabilities, there.probabilities, rtol=1e-4)

    def test_features_go_along(self) -> None:
        model = classifier(num_features=3)
        pos, normals = torch.rand(NUM_POINTS, 3), torch.rand(NUM_POINTS, 3)
        with torch.no_grad():
            expected = model.task(in_unit_sphere(pos)[None], normals[None])[0].softmax(dim=0).max()
        for cloud in (torch.cat((pos, normals), dim=1), Data(pos=pos, x=normals)):
            assert float(model.classify(cloud).probabilities[0]) == pytest.approx(float(expected), rel=1e-5)

    def test_prepared_as_in_training(self) -> None:
        """Features in the network's order, whatever that of the cloud; height is computed."""
        preprocessing = {"features": ["intensity", "height", "normals"], "normalize": "box", "up_axis": "y"}
        model = classifier(preprocessing, num_features=5)
        pos, intensity, normals = torch.rand(NUM_POINTS, 3), torch.rand(NUM_POINTS), torch.rand(NUM_POINTS, 3)
        low, high = pos.double().amin(dim=0), pos.double().amax(dim=0)
        scale = (high - low).max() / 2
        height = ((pos[:, 1].double() - low[1]) / scale).float()
        in_box = ((pos.double() - (low + high) / 2) / scale).float()
        features = torch.cat((normals, torch.stack((intensity, height), dim=1)), dim=1)
        with torch.no_grad():
            expected = model.task(in_box[None], features[None])[0].softmax(dim=0).max()
        cloud = Cloud(pos.numpy(), {"intensity": intensity.numpy(), "normals": normals.numpy()})
        assert float(model.classify(cloud).probabilities[0]) == pytest.approx(float(expected), rel=1e-5)
        with pytest.raises(ValueError, match="expected normals among the features of the cloud, but it has height"):
            model.classify(pos)

    def test_normals_are_estimated_as_in_training(self, tmp_path: Path) -> None:
        """From positions alone, of the whole cloud, whatever their type; normals that it has are not asked for."""
        preprocessing = {"features": ["height", "estimated_normals"], "normalize": "sphere", "up_axis": "z"}
        model, pos = classifier(preprocessing, num_features=4), torch.randn(200, 3)
        path = checkpoints.save_weights(model.task, tmp_path / "x.safetensors", model.data, dtype="float32")
        model = pcattn.load(path, device="cpu")
        drawn = draw_views(200, NUM_POINTS, 1, seed=0)[0]
        height = (pos[:, 2:] - pos[:, 2].min()) / (pos - pos.mean(dim=0)).norm(dim=1).max()
        features = torch.cat((estimate_normals(pos[None])[0], height), dim=1)
        with torch.no_grad():
            expected = model.task(in_unit_sphere(pos)[None, drawn], features[None, drawn])[0].softmax(dim=0).max()
        for cloud in (pos, pos.double().numpy(), Data(pos=pos, normal=torch.rand(200, 3))):
            assert float(model.classify(cloud).probabilities[0]) == pytest.approx(float(expected), rel=1e-4)

    def test_several(self) -> None:
        model, clouds = classifier(), torch.rand(3, 40, 3)
        single = [model.classify(cloud) for cloud in clouds]
        for several in (clouds, list(clouds), clouds.numpy()):
            for got, expected in zip(model.classify(several), single, strict=True):
                assert np.array_equal(got.probabilities, expected.probabilities)
        assert model.classify([]) == []

    def test_batches_of_torch_geometric(self) -> None:
        """As its loaders yield them: all clouds in one `pos`, which is no cloud."""
        model, clouds = classifier(), [Data(pos=torch.rand(size, 3)) for size in (40, 9)]
        for got, cloud in zip(model.classify(Batch.from_data_list(clouds)), clouds, strict=True):
            assert np.array_equal(got.probabilities, model.classify(cloud).probabilities)

    def test_few_points_are_repeated(self) -> None:
        model, pos = classifier(), torch.rand(3, 3)
        with torch.no_grad():
            # The cloud is normalized before it is filled up.
            expected = model.task(in_unit_sphere(pos).repeat(11, 1)[None, :NUM_POINTS])[0].softmax(dim=0)
        assert model.classify(pos).probabilities[0] == pytest.approx(float(expected.max()), rel=1e-5)
        assert np.isfinite(model.classify(pos[:1]).probabilities).all()

    def test_votes_are_averaged(self) -> None:
        model, pos = classifier(), torch.rand(100, 3)
        views, scales = draw_views(100, NUM_POINTS, 20, seed=3), view_scales(20)[:, None, None]
        with torch.no_grad():
            expected = model.task(in_unit_sphere(pos)[views] * scales).softmax(dim=1).mean(dim=0)
        result = model.classify(pos, votes=20, seed=3)
        np.testing.assert_allclose(result.probabilities, expected.sort(descending=True).values, rtol=1e-5)

    def test_errors(self) -> None:
        model = classifier()
        with pytest.raises(ValueError, match="a classifier, but this is PartSegmentation: use predict"):
            segmenter().classify(torch.rand(5, 3))
        for arguments, message in (({"top_k": 0}, "top_k >= 1, but got 0"), ({"votes": 0}, "votes >= 1, but got 0")):
            with pytest.raises(ValueError, match=message):
                model.classify(torch.rand(5, 3), **arguments)


class TestSegment:
    @pytest.mark.parametrize("variant", ["spct", "pct", "pct_sampled"])
    def test_is_the_network_where_all_points_fit(self, variant: str) -> None:
        model, pos = segmenter(variant=variant), torch.rand(NUM_POINTS, 3)
        with torch.no_grad():
            logits = model.task(in_unit_sphere(pos)[None], torch.tensor([0]))[0]
        result = model.segment(pos, "bed")
        expected = logits[:, :3].softmax(dim=1).max(dim=1)
        assert result.labels.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(result.probabilities, expected.values, rtol=1e-5)
        assert (result.names, result.category) == (PART_NAMES, 0)

    def test_parts_of_the_category(self) -> None:
        model, pos = segmenter(), torch.rand(100, 3)
        for category, ids in enumerate(PARTS):
            assert set(model.segment(pos, category).labels.tolist()) <= set(ids)
        probabilities = model.segment(pos, "lamp").probabilities
        assert ((probabilities > 0.9999) & (probabilities <= 1)).all()

    def test_protocol_of_all_parts(self) -> None:
        model, pos = segmenter(protocol="all50"), torch.rand(NUM_POINTS, 3)
        with torch.no_grad():
            expected = model.task(in_unit_sphere(pos)[None], torch.tensor([1]))[0].argmax(dim=1)
        assert model.segment(pos, "chair").labels.tolist() == expected.tolist()

    @pytest.mark.parametrize("votes", [1, 3])
    def test_interpolated_to_all_points(self, votes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Against brute force, and whatever the size of the chunks."""
        model, pos = segmenter(), torch.rand(200, 3)
        views, unit = draw_views(200, NUM_POINTS, votes, seed=0), in_unit_sphere(pos)
        drawn = views.flatten().unique()
        scaled = unit[views] * view_scales(votes)[:, None, None]
        with torch.no_grad():
            found = model.task(scaled, torch.zeros(votes, dtype=torch.long))[..., :3].softmax(dim=2)
        known = torch.stack([found[views == point].mean(dim=0) for point in drawn])
        distances = (unit[:, None] - unit[drawn]).double().square().sum(dim=2)
        nearest = distances.topk(3, dim=1, largest=False)
        weights = 1 / nearest.values.clamp(min=1e-30)
        expected = (weights[..., None] * known[nearest.indices]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        result = model.segment(pos, 0, votes=votes)
        np.testing.assert_allclose(result.probabilities, expected.max(dim=1).values, rtol=1e-4)
        monkeypatch.setattr(inference, "_CHUNK", 7)
        again = model.segment(pos, 0, votes=votes)
        assert np.array_equal(again.labels, result.labels)
        assert np.array_equal(again.probabilities, result.probabilities)

    def test_repeatable(self) -> None:
        model, pos = segmenter(), torch.rand(200, 3)
        first, second, other = (model.segment(pos, 0, seed=seed).probabilities for seed in (1, 1, 2))
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("category", ["chair", 1, np.int64(1), torch.tensor([1])])
    def test_category(self, category: Any) -> None:
        model, pos = segmenter(), torch.rand(40, 3)
        assert model.segment(pos, category).category == 1
        assert model.segment(Data(pos=pos, category=torch.tensor([1]))).category == 1

    @pytest.mark.parametrize("category", [None, "sofa", 3, -1])
    def test_unknown_category(self, category: Any) -> None:
        with pytest.raises(ValueError, match=f"one of bed, chair, lamp, or an index, but got {category!r}"):
            segmenter().segment(torch.rand(40, 3), category)

    def test_one_category_needs_no_name(self) -> None:
        result = segmenter([[0, 1, 2]], None, part_names=None).segment(torch.rand(40, 3))
        assert (result.category, result.names) == (0, ["0", "1", "2"])

    def test_several(self) -> None:
        model, clouds = segmenter(), [torch.rand(40, 3), torch.rand(7, 3)]
        for categories, expected in (("bed", [0, 0]), (["lamp", "chair"], [2, 1])):
            results = model.segment(clouds, categories)
            assert [result.category for result in results] == expected
            assert [len(result.labels) for result in results] == [40, 7]
        for category in (1, np.int64(1), torch.tensor(1)):
            assert [result.category for result in model.segment(clouds, category)] == [1, 1]
        batch = Batch.from_data_list([Data(pos=pos, category=torch.tensor([2])) for pos in clouds])
        assert [(result.category, len(result.labels)) for result in model.segment(batch)] == [(2, 40), (2, 7)]
        with pytest.raises(ValueError, match="one category for each of 2 clouds, but got 1"):
            model.segment(clouds, ["bed"])

    def test_of_a_classifier(self) -> None:
        with pytest.raises(ValueError, match="a part segmenter, but this is Classification: use predict"):
            classifier().segment(torch.rand(5, 3))


def test_network() -> None:
    model = classifier()
    assert model.network is model.task.network
    assert isinstance(model.network, torch.nn.Module)


def test_what_a_shell_shows() -> None:
    assert {"load", "Model"} <= set(dir(pcattn))
    assert repr(classifier()) == "Model(Classification, 3 classes, 32 points, on cpu)"
    assert repr(segmenter()) == "Model(PartSegmentation, 3 classes, 6 parts, 32 points, on cpu)"


class TestBlocks:
    """What comes in blocks is what comes at once."""

    @pytest.mark.parametrize("normalize", ["sphere", "box", "none"])
    @pytest.mark.parametrize(("num_points", "votes"), [(200, 1), (200, 3), (NUM_POINTS, 1), (5, 1)])
    def test_segment(self, normalize: str, num_points: int, votes: int) -> None:
        preprocessing = {"features": ["height"], "normalize": normalize, "up_axis": "y"}
        model = segmenter(num_features=1)
        model.preprocessing = preprocessing
        cloud = torch.randn(num_points, 3, dtype=torch.float64) + 10
        whole = model.segment(cloud, 0, votes=votes)
        parts = list(model.segment_blocks(cloud.split(7), 0, votes))
        assert [len(part.labels) for part in parts] == [len(block) for block in cloud.split(7)]
        assert np.array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
        np.testing.assert_allclose(np.concatenate([part.probabilities for part in parts]), whole.probabilities, 1e-5)

    def test_classify(self) -> None:
        model, cloud = classifier(), torch.rand(200, 3)
        whole, blocks = model.classify(cloud, votes=2), model.classify_blocks(cloud.split(9), votes=2)
        assert whole.names == blocks.names
        np.testing.assert_allclose(blocks.probabilities, whole.probabilities, 1e-5)

    def test_normals_need_the_whole_cloud(self) -> None:
        preprocessing = {"features": ["estimated_normals"], "normalize": "sphere", "up_axis": "z"}
        model, cloud = classifier(preprocessing, num_features=3), torch.rand(50, 3)
        with pytest.raises(ValueError, match="the cloud in one block, because normals are estimated, but got 5"):
            model.classify_blocks(cloud.split(10))
        assert model.classify_blocks([cloud]).names == model.classify(cloud).names

    def test_bad_blocks(self) -> None:
        model, cloud = classifier(), torch.rand(50, 3)
        with pytest.raises(ValueError, match="expected a part segmenter, but this is Classification"):
            next(model.segment_blocks([cloud]))
        with pytest.raises(ValueError, match="at least one block of points, but got none"):
            model.classify_blocks([])
        with pytest.raises(ValueError, match="iterated several times, but got an iterator"):
            model.classify_blocks(iter([cloud]))
        cloud[33, 1] = torch.nan
        with pytest.raises(ValueError, match="the first is point 33"):
            model.classify_blocks(cloud.split(10))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("make", "call", "arguments"), [(classifier, "classify", ()), (segmenter, "segment", ("bed",))]
)
def test_broken_weights_predict_nothing(make: Any, call: str, arguments: tuple, value: float) -> None:
    """NaN would count as the first class."""
    model = make()
    with torch.no_grad():
        next(model.task.network.parameters()).fill_(value)
    with pytest.raises(ValueError, match="expected finite logits, but the network has others: its weights"):
        getattr(model, call)(torch.rand(NUM_POINTS, 3), *arguments)


class TestUpAxis:
    """A cloud that lies on its side is turned to the up axis of the training."""

    @pytest.mark.parametrize(("up", "target"), [("y", "z"), ("z", "y"), ("x", "z"), ("y", "x"), ("z", "z")])
    def test_turn_is_a_rotation(self, up: str, target: str) -> None:
        turned = turn(torch.eye(3), up, target)
        assert torch.equal(turned["xyz".index(up)], torch.eye(3)["xyz".index(target)])
        assert torch.linalg.det(turned) == 1
        assert torch.equal(turn(turned, target, up), torch.eye(3))

    def test_same_prediction_as_upright(self) -> None:
        task = Classification(3, network_kwargs=NETWORK, num_features=3)
        with torch.no_grad():
            for weights in task.parameters():
                weights *= 2  # a network at its start hardly tells directions apart
        preprocessing = {"features": ["normals"], "normalize": "sphere", "up_axis": "z"}
        model = Model(task, {"num_points": 32, "preprocessing": preprocessing})
        upright = torch.nn.functional.normalize(torch.randn(32, 6), dim=1)
        lying = torch.cat((turn(upright[:, :3], "z", "y"), turn(upright[:, 3:], "z", "y")), dim=1)
        expected = model.predict(upright)["probabilities"]
        np.testing.assert_allclose(model.predict(lying, up_axis="y")["probabilities"], expected, atol=1e-4)
        assert not np.allclose(model.predict(lying)["probabilities"], expected, atol=1e-2)

    def test_normals_are_those_of_the_given_cloud(self) -> None:
        torch.manual_seed(0)
        model = Model(NormalEstimation(network_kwargs=NETWORK).eval(), {"num_points": 32})
        upright = torch.randn(32, 3)
        expected = turn(torch.from_numpy(model.predict(upright)["normals"]), "z", "y")
        found = model.predict(turn(upright, "z", "y"), up_axis="y")["normals"]
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_other_axes_are_refused(self) -> None:
        with pytest.raises(InputError, match="expected the up axis to be x, y or z, but got 'w'"):
            turn(torch.eye(3), "w", "z")
