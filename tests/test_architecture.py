"""What may import what, and what a fresh process may do: no torch, no network, no code out of files."""

from __future__ import annotations

import ast
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Trained
from drawn_pictures import run_python, write_shapes

import headstart

SOURCE = Path(headstart.__file__).parent
PACKAGES = {"", "backbones", "heads", "finetuning", "recipes", "insight", "report", "serve", "exporting"}

# A module imports from the rows above its own only.
LAYERS = [
    "errors recipes.recipe plots exporting.prepare exporting.predict_script",
    "palette csv_text _files formats parallel graph metrics stats onnx_reader",
    "image_files heads.components heads.fitting exporting.targets exporting.browser_runtime",
    "plot_axes decode tables calibration onnx_rules feature_cache backbones.efficientnet_lite backbones.torch_checkpoint "
    "backbones.weights_file heads.linear heads.dense fixed_shapes familiarity public_datasets finetuning.augmentation finetuning.flip_check "
    "finetuning.checkpoints finetuning.layer_table",
    "plot_labels execution",
    "plot_svg plot_figure",
    "evaluation_plots",
    "dataset pictures evaluation artifact_metadata backbones.efficientnet_lite_int8 backbones.catalog backbones.weights_download finetuning.mixing finetuning.history",
    "evaluation_files config splits data_check artifact features backbones.weights backbones.network_layers "
    "finetuning.augmentation_picture recipes.vgg16_dense100 "
    "recipes.vgg16_average recipes.inception_v3_mixed7 recipes.inception_v3_average recipes.resnet50_cifar10",
    "heads.cross_validation",
    "heads.comparison",
    "heads.selection prediction report.content summary terminal terminal_report predictions_output backbones.torch_network finetuning.rows",
    "exporting.checking",
    "exporting.quantization exporting.batches exporting.runner exporting.browser exporting.model_card",
    "exporting.openvino_folder hub",
    "cli_options predict_journal sorting submission heat_tail contact_sheet report.thumbnails insight.learning_curve insight.properties insight.speed insight.suspects review heads.svm heads.from_file backbones.onnx_export recipes.vgg19_dense100 recipes.resnet50_dense100",
    "predict_run preparation backbones.exported backbones.from_file finetuning.cut heads.cached insight.imagenet_distance insight.alignment "
    "insight.neighbours heat_maps insight.forecast insight.mismatch insight.comparison review_terminal report.page",
    "watching backbones.loading finetuning.model insight.near_copies insight.diagnosis insight.mismatch_section "
    "insight.comparison_section",
    "cli_predict_task insight.near_copies_section",
    "backbones.listing",
    "finetuning.loop",
    "finetuning.dense_training",
    "backbone_choice insight.advice insight.subject",
    "training verification",
    "estimator finetuning.outcome",
    "finetuning.tuning",
    "tuning",
    "recipes.runner",
    "recipes.transfer_gain",
    "report.galleries report.course cli_review",
    "report.assembly",
    "report.writing",
    "exporting.int8",
    "cli_insight cli_export cli_hub",
    "serve.refusals serve.settings serve.request_log serve.metrics serve.tensors serve.openapi_parts",
    "serve.infer_request serve.http_protocol serve.models serve.openapi_protocol",
    "serve.body serve.workers",
    "serve.front_door",
    "serve.predict_route serve.inference_protocol serve.openapi serve.neighbours",
    "serve.page serve.api_page",
    "serve.app",
    "serve.running",
    "cli_predict cli_train cli_torch cli_serve",
    "cli",
]
LEVELS = {name: number for number, names in enumerate(LAYERS) for name in names.split()}


def find_modules() -> dict[str, ast.Module]:
    """Every module by its name below headstart; packages as `backbones`, the whole as ``."""
    modules = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text())
    return modules


def find_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of the module and of its functions, but not those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from find_imports(ast.Module(child.orelse, []))
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from find_imports(child)


def name_imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full dotted names: `from a import b` is a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "relative imports are not used here"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def find_dependencies(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module to the modules of headstart it imports."""
    found: dict[str, set[str]] = {}
    for name, tree in modules.items():
        found[name] = set()
        for full in (full for node in find_imports(tree) for full in name_imported(node)):
            parts = full.split(".")
            if parts[0] == "headstart":
                candidates = (".".join(parts[1:end]) for end in range(len(parts), 0, -1))
                found[name].add(next(each for each in candidates if each in modules))
    return found


def test_every_module_has_its_layer() -> None:
    assert set(LEVELS) == set(find_modules()) - PACKAGES, "give the new module its place in LAYERS"


def test_imports_point_one_way() -> None:
    modules = find_modules()
    wrong = [
        f"{name} imports {other}"
        for name, others in find_dependencies(modules).items()
        for other in sorted(others - PACKAGES)
        if LEVELS[other] >= LEVELS.get(name, 1)  # a package may import what stands at the bottom
    ]
    assert not wrong


def test_imports_are_seen_in_functions_and_not_for_type_checkers() -> None:
    tree = ast.parse(
        textwrap.dedent(
            """
            if TYPE_CHECKING:
                import headstart.cli
            else:
                import headstart.stats
            def load():
                from headstart import metrics
                from headstart.errors import DataError
                import headstart.heads.fitting
            """
        )
    )
    modules = dict.fromkeys(["", "cli", "stats", "metrics", "errors", "heads", "heads.fitting"], ast.Module([], []))
    found = find_dependencies(modules | {"x": tree})["x"]
    assert found == {"stats", "metrics", "errors", "heads.fitting"}


RUN_OR_SEND = {
    *("pickle", "_pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "runpy", "code", "subprocess"),
    *(
        "socket",
        "socketserver",
        "ssl",
        "http",
        "urllib",
        "urllib3",
        "requests",
        "httpx",
        "aiohttp",
        "ftplib",
        "smtplib",
    ),
    "tensorflow",
}
TORCH = ("torch", "timm", "torchvision", "safetensors", "huggingface_hub", "onnxscript", "matplotlib")
# What needs the extra torch, and what opens connections: to the hub, when weights or a public collection are asked for.
USES_TORCH = re.compile(
    r"finetuning\.(?!augmentation$|flip_check$)\w+|public_datasets|recipes\.\w+"
    r"|plot_figure|hub|backbones\.(listing|network_layers|onnx_export|torch_network|weights\w*)"
)
OPENS_CONNECTIONS = {
    "backbones.weights_download imports urllib.error",
    "backbones.weights_download imports urllib.request",
    "public_datasets imports urllib.error",
    "exporting.browser_runtime imports subprocess",  # npm and node, where a page for browsers is asked for
}


def find_dangers(name: str, tree: ast.Module) -> list[str]:
    found = [
        f"{name} imports {full}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for full in name_imported(node)
        if full.split(".")[0] in RUN_OR_SEND or (full.split(".")[0] in TORCH and not USES_TORCH.fullmatch(name))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec", "compile", "__import__"):
            found.append(f"{name} uses {node.id}")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.system", "os.popen", "pickle.loads"):
            found.append(f"{name} uses {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            if "weights_only=True" not in ast.unparse(node):
                found.append(f"{name} loads with torch what may be code")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append(f"{name} passes allow_pickle")
    return found


def test_nothing_runs_code_from_files_or_opens_connections() -> None:
    modules = find_modules()
    found = [danger for name, tree in modules.items() for danger in find_dangers(name, tree)]
    assert set(found) - OPENS_CONNECTIONS == {"backbones.torch_checkpoint imports pickle"}
    # Its one use: a class that decides itself what may be built.
    tree = modules["backbones.torch_checkpoint"]
    uses = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    bases = {"pickle.Unpickler", "pickle._Unpickler"}  # in C, in Python
    assert {use for use in uses if use.startswith("pickle.")} <= {*bases, "pickle.UnpicklingError"}
    unpicklers = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases]
    (unpickler,) = (node for node in unpicklers if ast.unparse(node.bases[0]) in bases)
    assert "find_class" in {node.name for node in unpickler.body if isinstance(node, ast.FunctionDef)}
    assert len(re.findall(r"pickle\._?Unpickler", ast.unparse(tree))) == 1  # as that base


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from urllib.request import urlopen",
        "eval('1')",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "import torch",
        "os.system(x)",
    ],
)
def test_dangers_are_seen(line: str) -> None:
    assert len(find_dangers("x", ast.parse(f"def f():\n    {line}"))) == 1


# Fresh processes

BLOCK_TORCH = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "torchvision", "timm"):
                raise ModuleNotFoundError(f"{name} is blocked by the test")

    sys.meta_path.insert(0, Blocker())
"""
BLOCK_NETWORK = """
    import socket

    def refuse(*args, **kwargs):
        raise PermissionError("the network is blocked by the test")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.create_connection = refuse
"""
FULL_ROUND = """
    import sys
    import numpy as np
    import headstart

    classifier = headstart.train(sys.argv[1], layers="top", penalty=0.1)
    classifier.save("shapes.onnx")
    loaded = headstart.load("shapes.onnx")
    picture = f"{sys.argv[1]}/checks/00.png"
    assert loaded.predict(picture).label == "checks", loaded.predict(picture)
    assert np.array_equal(loaded.predict(picture).probs, classifier.predict(picture).probs)
    assert loaded.evaluate(sys.argv[1]).correct.all()
    assert classifier.training.evaluation.compute_figures()["accuracy"]["value"] == 1
    print("done", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def run_fresh(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-c", code, *arguments, cwd=folder, HEADSTART_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")


def dedent_all(*parts: str) -> str:
    return "\n".join(textwrap.dedent(part) for part in parts)


def test_everything_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", 8, ("checks", "stripes"))
    blocked = run_fresh(tmp_path, dedent_all(BLOCK_TORCH, "import torch"))
    assert "ModuleNotFoundError: torch is blocked by the test" in blocked.stderr
    done = run_fresh(tmp_path, dedent_all(BLOCK_TORCH, FULL_ROUND), str(shapes))
    assert done.stdout.startswith("done "), done.stderr
    assert not {"torch", "torchvision", "timm"} & set(done.stdout.split())


def test_nothing_is_sent(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", 8, ("checks", "stripes"))
    blocked = run_fresh(tmp_path, dedent_all(BLOCK_NETWORK, "socket.socket().connect(('127.0.0.1', 9))"))
    assert "PermissionError: the network is blocked by the test" in blocked.stderr
    done = run_fresh(tmp_path, dedent_all(BLOCK_NETWORK, FULL_ROUND), str(shapes))
    assert done.stdout.startswith("done "), done.stderr
    assert done.stderr == ""


def list_loaded(folder: Path, code: str, *arguments: str) -> set[str]:
    """Top-level modules that are loaded after `code` in a fresh process."""
    ending = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = run_fresh(folder, dedent_all(code, ending), *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


PREDICT = """
    import sys, headstart
    assert headstart.load(sys.argv[1]).predict(sys.argv[2]).label == "checks"
"""


def test_predicting_imports_little(tmp_path: Path, trained: Trained) -> None:
    picture = str(trained.shapes / "checks" / "00.png")
    loaded = list_loaded(tmp_path, PREDICT, str(trained.file), picture)
    heavy = {"torch", "sklearn", "scipy", "onnx", "pandas", "polars", "pyarrow", "rich", "typer", "matplotlib"}
    assert not loaded & heavy
    assert {"numpy", "PIL", "onnxruntime"} <= loaded  # the check sees what is there


def test_import_headstart_is_light(tmp_path: Path) -> None:
    loaded = list_loaded(tmp_path, "import headstart")
    assert "headstart" in loaded
    assert not loaded & {"numpy", "PIL", "onnx", "onnxruntime", "sklearn", "rich", "typer", "pyarrow"}


def test_help_is_light(tmp_path: Path) -> None:
    loaded = list_loaded(tmp_path, "import headstart.cli")
    assert "typer" in loaded
    assert not loaded & {"numpy", "PIL", "onnx", "onnxruntime", "sklearn", "pyarrow"}
