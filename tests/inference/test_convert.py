"""Released networks: converted weights give the same logits and gradients, and other files are refused."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pcattn
from pcattn.inference import checkpoints
from pcattn.inference.convert import convert
from tests.conftest import FIXTURES
from tests.models.released import ReleasedPCT, ReleasedSPCT, ReleasedSPCTSegmenter, randomize


def relative(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def build(path: Path, architecture: str = "pct_pytorch") -> nn.Module:
    """The converted network in float64, without dropout."""
    network = checkpoints.build(convert(path, architecture)).network.double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def save(network: nn.Module, path: Path, under: str | None = None) -> Path:
    """A state dict as PCT's port saves it, from `nn.DataParallel`."""
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(state if under is None else {under: state, "epoch": 3}, path)
    return path


NETWORKS = {
    "pct": (lambda: ReleasedPCT(32, 48, 7), "pct_pytorch"),
    "pct, positions": (lambda: ReleasedPCT(32, 48, 7, position=True), "pct_pytorch"),
    "pct, Jittor": (lambda: ReleasedPCT(32, 48, 7, slope=0.0), "pct_jittor"),
    "spct, Jittor": (lambda: ReleasedSPCT(32, 48, 7), "pct_jittor"),
    "spct parts, Jittor": (lambda: ReleasedSPCTSegmenter(32, 48), "pct_jittor"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_network_written_out(name: str, training: bool, tmp_path: Path) -> None:
    make, architecture = NETWORKS[name]
    released = randomize(make())
    path = save(released, tmp_path / "model.t7")
    ours, released = build(path, architecture).train(training), released.double().train(training)
    pos = torch.randn(3, 128, 3, dtype=torch.float64, requires_grad=True)
    inputs = (pos, torch.tensor([0, 5, 15])) if "parts" in name else (pos,)
    expected, got = released(*inputs), ours(*inputs)
    cotangent = torch.randn_like(expected)
    gradients = [torch.autograd.grad((logits * cotangent).sum(), pos)[0] for logits in (got, expected)]
    assert relative(got, expected) < 1e-10
    assert relative(*gradients) < 1e-10


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["pct_pytorch", "pct_pytorch_new"])
def test_equals_the_fixture(name: str, training: bool, load_fixture) -> None:
    """Logits and gradients of the port's own code, `model.py` and `model_new.py`."""
    if not (FIXTURES / f"{name}.t7").is_file():
        pytest.skip(f"PCATTN_FIXTURES has no {name}.t7")
    network, arrays = build(FIXTURES / f"{name}.t7").train(training), load_fixture(name)
    pos, mode = arrays["pos"].double().requires_grad_(), "train" if training else "eval"
    logits = network(pos)
    (gradient,) = torch.autograd.grad((logits * arrays["grad_logits"]).sum(), pos)
    assert relative(logits, arrays[f"logits_{mode}"]) < 1e-10
    assert relative(gradient, arrays[f"grad_pos_{mode}"]) < 1e-10


def test_load(tmp_path: Path) -> None:
    """With a state dict in a larger file, and without the prefix."""
    path = save(randomize(ReleasedSPCT(16, 16, 5)), tmp_path / "nested.pth", under="state_dict")
    model = pcattn.load(path, device="cpu", architecture="pct_pytorch")
    assert model.class_names == list("01234")
    torch.save(torch.load(path)["state_dict"], path)
    other = pcattn.load(path, device="cpu", architecture="pct_pytorch")
    cloud = torch.randn(100, 3)
    assert (model.classify(cloud).probabilities == other.classify(cloud).probabilities).all()


class Code:
    def __reduce__(self) -> tuple:
        return print, ("this ran",)


@pytest.mark.parametrize("checksum", [True, False])
def test_jittor_pickles(checksum: bool, tmp_path: Path) -> None:
    released = randomize(ReleasedSPCTSegmenter(16, 16))
    path = save(released, tmp_path / "model.t7")
    arrays = {}
    for name, tensor in released.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            module, _, kind = name.rpartition(".")
            holds_conv = tensor.dim() == 3 or (kind == "bias" and f"{module}.running_mean" not in released.state_dict())
            arrays[f"{module}.conv.{kind}" if holds_conv else name] = tensor.numpy()
    content = pickle.dumps(arrays, 4)
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(content + hashlib.sha1(content).digest() + b"HCAJSLHD" if checksum else content)
    got, expected = convert(pickled, "pct_jittor"), convert(path, "pct_jittor")
    assert got.task == "PartSegmentation"
    assert got.state.keys() == expected.state.keys()
    assert all(torch.equal(got.state[name], tensor) for name, tensor in expected.state.items())


@pytest.mark.parametrize("suffix", ["pkl", "t7"])
def test_code_is_refused(suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps({"conv1.weight": Code()}))
    else:
        torch.save({"conv1.weight": Code()}, path)
    with pytest.raises(ValueError, match=r"expected .* to hold tensors and plain data alone"):
        convert(path)
    assert "this ran" not in capfd.readouterr().out


def test_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    released = ReleasedSPCT(16, 16, 5)
    released.extra = nn.Linear(2, 2, bias=False)
    del released.linear2
    with pytest.raises(ValueError, match=r"missing linear2\.weight, linear2\.bias; unexpected extra\.weight"):
        convert(save(released, tmp_path / "model.t7"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(1)}, "but it lacks"),
        ({"a": 1}, "expected .* to hold a state dict"),
        ([torch.zeros(1)], "expected .* to hold a state dict"),
    ],
)
def test_other_files_are_refused(content, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.t7")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "model.t7")


def test_queries_and_keys_that_differ_are_refused(tmp_path: Path) -> None:
    released = ReleasedSPCT(16, 16, 5)
    released.sa2.k_conv.weight = nn.Parameter(torch.randn_like(released.sa2.q_conv.weight))
    with pytest.raises(ValueError, match=r"sa2\.q_conv\.weight and sa2\.k_conv\.weight .* to be equal"):
        convert(save(released, tmp_path / "model.t7"))


def test_another_architecture() -> None:
    with pytest.raises(ValueError, match="expected architecture to be one of pct_pytorch, pct_jittor, but got 'dgcnn'"):
        convert("model.t7", "dgcnn")
