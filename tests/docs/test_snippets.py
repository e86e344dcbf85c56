"""README and documentation are true: snippets run, command lines parse, links lead somewhere."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pcattn.attention import ATTENTION
from pcattn.cli.config_files import bundled_configs
from pcattn.cli.main import COMMANDS, LIGHTNING, main
from pcattn.io import Cloud, write_ply
from pcattn.models import CLASSIFIERS, SEGMENTERS
from pcattn.tasks import TASKS
from tests.docs.markdown import MARKDOWN, PAGES, REPOSITORY, anchors, blocks, commands, links, name

#: Options that make any training of a configuration tiny.
TINY = (
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    *("--data.num_points", "96", "--data.batch_size", "4"),
)

#: Commands that a page needs before its Python runs.
BEFORE = {"docs/deploy.md": [["export", "--ckpt_path", "modelnet40-cpu", "--out", "model.onnx"]]}

#: Python that takes over ten seconds.
SLOW = {"README.md", "docs/deploy.md", "docs/start.md"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, where modules are found. What they register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = [(registry, dict(registry)) for registry in (ATTENTION, CLASSIFIERS, SEGMENTERS, TASKS)]
    modules = set(sys.modules)
    yield tmp_path
    for registry, entries in registries:
        registry.clear()
        registry.update(entries)
    for module in set(sys.modules) - modules:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def write_files(page: Path) -> None:
    """The files that a page shows, into the current folder."""
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")


def run(words: list[str]) -> None:
    """Run a command; one that fails fails the test."""
    try:
        main(words)
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"pcattn {' '.join(words)}: exit status {stop.code}")


with_python = [
    pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in SLOW else [])
    for page in PAGES
    if any(block.language == "python" for block in blocks(page))
]


@pytest.mark.parametrize("page", with_python)
def test_python(page: Path, folder: Path) -> None:
    write_files(page)
    for words in BEFORE.get(name(page), []):
        run(words)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        if block.language == "python" and not block.title:
            # Empty lines before it, so that a traceback shows the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


@pytest.fixture(scope="module")
def parsers() -> ModuleType:
    """The tool of the site that asks the parsers."""
    spec = importlib.util.spec_from_file_location("parsers", REPOSITORY / "docs" / "tools" / "parsers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_here(words: list[str]) -> list[str]:
    """A command line with bundled configurations for those that a reader would have, and a device that exists."""
    result, known = ["cpu" if word == "cuda" else word for word in words], bundled_configs()
    for place, word in enumerate(result):
        if place and result[place - 1] in ("-c", "--config") and Path(word).stem not in known:
            parts = Path(word).parts
            run_name = parts[-2] if len(parts) > 1 else ""
            result[place] = run_name if run_name in known else "smoke_parts" if "part" in word else "smoke"
    return result


with_commands = [page for page in MARKDOWN if any(commands(page))]


@pytest.mark.parametrize("page", with_commands, ids=name)
def test_commands(page: Path, folder: Path, parsers: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(page)
    for words in commands(page):
        understood(as_here(words), parsers, capsys)


def understood(words: list[str], parsers: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        _, result = parsers.parse(words)
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"pcattn {' '.join(words)}: {capsys.readouterr().err}")
        return  # --help
    if COMMANDS[words[0]].module != LIGHTNING and isinstance(result, tuple):  # options of a training, too
        training = "test" if words[0] == "robustness" else "fit"
        understood([training, "-c", result[0].config, *result[1]], parsers, capsys)


@pytest.mark.parametrize("page", MARKDOWN, ids=name)
def test_links(page: Path) -> None:
    for target in links(page):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").rglob("*.md"):
        assert f": {page.relative_to(REPOSITORY / 'docs').as_posix()}\n" in navigation, page


@pytest.mark.parametrize("what", ["attention", "network", "task", "dataset"])
def test_extension_trains(what: str, folder: Path) -> None:
    """The file of the page and its one line, on few shapes."""
    page = REPOSITORY / "docs" / "extend" / f"{what}.md"
    write_files(page)
    words = next(words for words in commands(page) if words[0] == "fit")
    few = ["--data.root", "shapes", "--data.dataset_kwargs", '{"num_train": 44, "num_test": 22, "num_points": 96}']
    run([*words, *TINY, *([] if what == "dataset" else few), "--run", "run"])
    assert Path("run/checkpoints/best.ckpt").is_file()


def write_scans(root: Path, count: int) -> None:
    """Bolts and nuts as PLY files, labeled by the height of their points."""
    rng = np.random.default_rng(count)
    for category, stretch in (("bolt", (0.2, 0.2, 1.0)), ("nut", (1.0, 1.0, 0.3))):
        (root / category).mkdir(parents=True)
        for index in range(count):
            pos = (rng.normal(size=(100, 3)) * stretch).astype(np.float32)
            label = (pos[:, 2] > 0).astype(np.uint8) + (2 if category == "nut" else 0)
            write_ply(root / category / f"scan_{index}.ply", Cloud(pos, {"label": label}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "scans", "expected"),
    [
        ("own-scans.md", "my_clouds", ["my_clouds_samples.png", "runs/mine/report.html", "worst.html", "classes.csv"]),
        ("parts.md", "my_scans", ["my_scans_samples.png", "runs/my_parts/results.json", "labeled"]),
    ],
)
def test_guide(page: str, scans: str, expected: list[str], folder: Path) -> None:
    """Every command of a guide, in order, as its reader would run them."""
    write_scans(Path(scans), 20)
    write_scans(Path("new_scans"), 2)
    for words in commands(REPOSITORY / "docs" / page):
        run([*words, *TINY] if words[0] == "fit" else words)
    for file in expected:
        assert Path(file).exists(), file
