"""The names that `import headstart` offers."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from pathlib import Path

import pytest

import headstart

NAMES = [name for name in headstart.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(headstart, name)
    assert value.__name__ == name
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text, "its own docstring, not its base's"
    assert len(text.split()) >= 5
    assert not text.startswith(f"{name}("), "written, not made by dataclass"


def test_public_methods_say_what_they_do() -> None:
    silent = []
    for name in ("Classifier", "Prediction", "ImageClassifier", "Evaluation", "FeatureCache", "Extractor"):
        for method, value in vars(getattr(headstart, name)).items():
            function = value.fget if isinstance(value, property) else value
            if not method.startswith("_") and inspect.isfunction(function) and not function.__doc__:
                silent.append(f"{name}.{method}")
    # Their names and types say it all.
    assert set(silent) <= {"Prediction.label", "Prediction.probability", "FeatureCache.add_facts"} | {
        "FeatureCache.measure_usage"
    }


def test_no_function_is_named_like_a_module() -> None:
    modules = {each.name.rpartition(".")[2] for each in pkgutil.walk_packages(headstart.__path__, "headstart.")}
    assert "training" in modules
    assert not modules & set(NAMES)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(headstart.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"headstart.{headstart._PUBLIC[name]}.{name}" for name in NAMES}


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'headstart' has no attribute 'trian'"):
        _ = headstart.trian
    assert dir(headstart) == sorted(headstart.__all__)
