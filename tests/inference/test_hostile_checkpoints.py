"""Checkpoints from strangers: no command runs what they name, and none takes more memory than they have."""

import json
import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import pcattn
from pcattn.cli.main import main
from pcattn.inference import checkpoints
from pcattn.utils.registry import find_import_path, names_only, resolve
from tests.datasets.modelnet_files import write_modelnet40
from tests.inference.test_checkpoints import DATA, classifier, write_ckpt
from tests.tiny import write_tiny_config


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that appears when the module `trapped` of the present folder is imported."""
    (tmp_path / "trapped.py").write_text("open('ran', 'w')\ndef code(*args, **kwargs): open('called', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("trapped", None)
    return tmp_path / "ran"


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["pcattn"])


def with_metadata(path: Path, about: Any) -> Path:
    """The same weights with another description."""
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    other = path.with_name("other.safetensors")
    save_file(state, other, {"pcattn": about if isinstance(about, str) else json.dumps(about)})
    return other


class TestCode:
    """A checkpoint that names code in any of its arguments, under every command that takes a checkpoint alone."""

    @pytest.mark.parametrize(
        "arguments",
        [
            {"hyper_parameters": {"attention": "trapped.code"}},
            {
                "hyper_parameters": {
                    "variant": "hierarchical_tiny",
                    "attention": ["self", "trapped.code", "self", "self"],
                    "network_kwargs": {},
                }
            },
            {"hyper_parameters": {"_class_path": "trapped.code"}},
            {"datamodule_hyper_parameters": {"dataset": "trapped.code"}},
            {"datamodule_hyper_parameters": {"augmentation": [{"trapped.code": None}]}},
            {"datamodule_hyper_parameters": {"dataset": "pyg", "dataset_kwargs": {"path": "trapped.code"}}},
        ],
        ids=lambda value: "-".join(next(iter(value.values()))),
    )
    def test_show_and_report(self, arguments: dict, trap: Path, capsys: pytest.CaptureFixture) -> None:
        task = classifier()
        data = {"root": ".", "num_points": 32, **arguments.get("datamodule_hyper_parameters", {})}
        own = {**task.hparams, "_class_path": "pcattn.tasks.Classification", **arguments.get("hyper_parameters", {})}
        Path("run/checkpoints").mkdir(parents=True)
        path = write_ckpt(
            Path("run/checkpoints/best.ckpt"), task, hyper_parameters=own, datamodule_hyper_parameters=data
        )
        for command in (("show", path, "--out", "a.html"), ("report", "run"), ("show", "run", "--out", "a.png")):
            assert run(*command) == 2
            assert "'trapped.code'" in capsys.readouterr().err
        if "hyper_parameters" in arguments:
            with pytest.raises(ValueError, match=r"'trapped\.code', which is code to be imported"):
                pcattn.load(path)
        assert not trap.exists()

    def test_evaluating_and_resuming(self, trap: Path, capsys: pytest.CaptureFixture) -> None:
        """The configuration is mine, the checkpoint a stranger's: what it stores is taken, but no code."""
        config = write_tiny_config(Path("mine.yaml"), write_modelnet40(Path("data")))
        settings = yaml.safe_load(config.read_text())["model"]["init_args"]
        task = classifier()
        own = {**task.hparams, **settings, "_class_path": "pcattn.tasks.Classification"}
        nested = {"dim": {"class_path": "trapped.code", "init_args": {}}}
        for change in ({"attention": "trapped.code"}, {"network_kwargs": nested}):
            path = write_ckpt(Path("a.ckpt"), task, hyper_parameters={**own, **change})
            for command in ("test", "fit"):
                assert run(command, "-c", config, "--ckpt_path", path) == 2
                assert "but it names 'trapped.code'" in capsys.readouterr().err
        data = {"augmentation": [{"trapped.code": None}]}
        path = write_ckpt(Path("a.ckpt"), task, hyper_parameters=own, datamodule_hyper_parameters=data)
        assert run("fit", "-c", config, "--ckpt_path", path) == 2
        assert "but it names 'trapped.code'" in capsys.readouterr().err
        assert not trap.exists()

    def test_what_is_trusted_is_imported(self, trap: Path) -> None:
        with pytest.raises(ValueError, match="to be one of a, but stranger names"), names_only("stranger"):
            resolve("thing", "trapped.code", {"a": 1})
        assert not trap.exists()
        with names_only(None):
            resolve("thing", "trapped.code", {"a": 1})
        assert trap.exists()

    def test_import_paths_are_found(self) -> None:
        for harmless in (None, 1, "", "chair", "a b.c", "x..y", "../up.txt", ["a", {"b": ("c", 1.5)}]):
            assert find_import_path(harmless) is None
        for value in ("os.system", {"a": ["b", {"os.system": 1}]}, [("x", "os.system")]):
            assert find_import_path(value) == "os.system"


class TestDescriptions:
    """`.safetensors` whose metadata are anything: a model, or a `ValueError` that names the file."""

    ODD = (None, True, -1, 0, 1.5, 10**30, "a.b", "a", [], [1], {}, {"a": 1}, [[[]]], "\x1b[31m")

    def test_any_value_anywhere(self, tmp_path: Path) -> None:
        path = checkpoints.save_weights(classifier(), tmp_path / "a.safetensors", DATA)
        about = metadata(path)
        about["data"]["preprocessing"] = {"features": [], "normalize": "sphere", "up_axis": "z"}
        places = [
            *((key,) for key in about),
            *((part, key) for part in ("hyper_parameters", "data") for key in about[part]),
            *(("hyper_parameters", "network_kwargs", key) for key in about["hyper_parameters"]["network_kwargs"]),
            *(("data", "preprocessing", key) for key in about["data"]["preprocessing"]),
        ]
        for number, place in enumerate(places):
            for step in range(2):  # some of all pairs, but all of both
                changed: Any = json.loads(json.dumps(about))
                inner = changed
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = self.ODD[(2 * number + step) % len(self.ODD)]
                try:
                    model = pcattn.load(with_metadata(path, changed), device="cpu")
                    model.classify(torch.rand(40, 3 + len(model.channel_names)))
                except ValueError:
                    continue  # anything else would end the test

    @pytest.mark.parametrize(
        ("about", "message"),
        [
            ("[" * 100_000, "reading it failed"),
            ("[]", "metadata 'pcattn'"),
            ('{"task": 1, "hyper_parameters": []}', "task"),
            ('{"task": "Classification", "hyper_parameters": [1]}', "dictionary hyper_parameters, but got list"),
            ('{"task": "Classification", "hyper_parameters": {}, "data": 1}', "dictionary data, but got int"),
        ],
    )
    def test_metadata(self, about: str, message: str, tmp_path: Path) -> None:
        path = checkpoints.save_weights(classifier(), tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=message):
            pcattn.load(with_metadata(path, about))

    @pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
    def test_absurd_headers(self, length: int, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(
            struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
        )
        with pytest.raises(ValueError, match=r"a\.safetensors to be a \.safetensors file, but reading it failed"):
            pcattn.load(path)
        header = json.dumps({"a": {"dtype": "F32", "shape": [10**12, 3], "data_offsets": [0, 12 * 10**12]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
        with pytest.raises(ValueError, match="reading it failed"):
            pcattn.load(path)


class TestSizes:
    def test_compressed(self, tmp_path: Path) -> None:
        """A bomb: zeros, deflated."""
        whole, path = write_ckpt(tmp_path / "whole.ckpt", classifier()), tmp_path / "bomb.ckpt"
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for member in source.infolist():
                target.writestr(member.filename, source.read(member))
            target.writestr("archive/data/bomb", bytes(50_000_000))
        with pytest.raises(
            ValueError, match=r"bomb\.ckpt to be a checkpoint, but reading it failed: expected at most \d+ bytes in"
        ):
            pcattn.load(path)

    def test_values_that_name_each_other(self, tmp_path: Path) -> None:
        """2^40 values in a few bytes, and one that holds itself: printing either would not end."""
        value: list = []
        for _ in range(40):
            value = [value, value]
        loop: list = []
        loop.append(loop)
        for odd in (value, loop):
            path = write_ckpt(tmp_path / "a.ckpt", classifier(), hyper_parameters={"odd": odd})
            with pytest.raises(ValueError, match="at most 100000 values in hyper_parameters"):
                pcattn.load(path)

    @pytest.mark.parametrize(
        "change",
        [
            {"hyper_parameters": [1]},
            {"hyper_parameters": {1: 2}},
            {"state_dict": {"network.a": 1}},
            {"callbacks": [1]},
            {"epoch": "a"},
            {"callbacks": {"a": {"monitor": "b", "current_score": torch.ones(2), "best_model_path": "a.ckpt"}}},
            {"datamodule_hyper_parameters": 7},
        ],
        ids=lambda change: "-".join(f"{k}-{v}"[:30] for k, v in change.items()),
    )
    def test_other_types(self, change: dict, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a\.ckpt"):
            pcattn.load(write_ckpt(tmp_path / "a.ckpt", classifier(), **change))

    def test_nothing_is_left_to_run(self, tmp_path: Path) -> None:
        """TorchScript archives and legacy files hold code or pickles as well."""
        script = tmp_path / "script.ckpt"
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
        legacy = tmp_path / "legacy.ckpt"
        torch.save({"a": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
        for path in (script, legacy):
            with pytest.raises(ValueError, match=rf"{path.name} to (be|hold)"):
                pcattn.load(path)


def test_configurations_take_no_python_objects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A configuration may name code by its class paths, but YAML alone makes no objects."""
    path = tmp_path / "a.yaml"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/name:os.mkdir"):
        path.write_text(f"seed_everything: {tag} ['{tmp_path / 'made'}']\n")
        assert run("fit", "-c", path) == 2
        assert "pcattn: error:" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "made")
