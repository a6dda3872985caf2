"""The classifier file: one crafted file for each line of the refusal list, damage, and writing under failure."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_models import TINY_FAMILIARITY, add_tiny_familiarity, make_tiny_classifier, make_tiny_metadata

from headstart import _files, artifact
from headstart.artifact import create_session, parse_artifact, read_artifact, save_artifact
from headstart.errors import ArtifactError, HeadstartError

CLASSES = ("cat", "dog", "owl")
DATA = Path(__file__).parent / "data"
# Children run in another folder, where a relative PYTHONPATH would not find the package under test.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(artifact.__file__).parents[1])}
ADVICE = " headstart opens only files that it could have saved itself (docs/file-format.md). Train or save it again."
DAMAGED = (
    "The file is damaged, or was edited after it was saved: its SHA-256 is not the one stored in it. "
    "Copy it again from where it was saved, or train again."
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "tiny.onnx"
    save_artifact(path, make_tiny_classifier(CLASSES), make_tiny_metadata(CLASSES))
    return path.read_bytes()


@pytest.fixture(scope="module")
def saved_both(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """With the output `familiarity`."""
    path = tmp_path_factory.mktemp("saved") / "both.onnx"
    model = make_tiny_classifier(CLASSES)
    add_tiny_familiarity(model)
    save_artifact(path, model, dataclasses.replace(make_tiny_metadata(CLASSES), familiarity=TINY_FAMILIARITY))
    return path.read_bytes()


def sign(model: onnx.ModelProto) -> bytes:
    """The hash as the format page tells it, by the onnx package: over the serialisation with an empty last entry."""
    others = [entry for entry in model.metadata_props if entry.key != "headstart.sha256"]
    entries = [(entry.key, entry.value) for entry in others]
    del model.metadata_props[:]
    for key, value in entries:
        model.metadata_props.add(key=key, value=value)
    entry = model.metadata_props.add(key="headstart.sha256", value="")
    entry.value = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return model.SerializeToString(deterministic=True)


def edit(saved: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_model_from_string(saved)
    change(model)
    return sign(model)


def set_entry(name: str, value: object) -> Callable[[onnx.ModelProto], None]:
    """Replace one entry: text as it is, everything else as JSON."""

    def change(model: onnx.ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == f"headstart.{name}")
        entry.value = value if isinstance(value, str) else json.dumps(value)

    return change


def set_key(name: str, key: str, value: object) -> Callable[[onnx.ModelProto], None]:
    """Replace one key of a JSON entry, or remove it when the value is `...`."""

    def change(model: onnx.ModelProto) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == f"headstart.{name}")
        content = json.loads(entry.value)
        content[key] = value
        if value is ...:
            del content[key]
        entry.value = json.dumps(content)

    return change


def get_tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def refuse(data: bytes, *, allow_unsigned: bool = False) -> str:
    with pytest.raises(ArtifactError) as caught:
        parse_artifact(data, allow_unsigned=allow_unsigned)
    return str(caught.value)


# What is saved comes back


def test_metadata_comes_back_and_the_hash_is_the_documented_one(saved: bytes) -> None:
    metadata, model_bytes = parse_artifact(saved)
    assert metadata == make_tiny_metadata(CLASSES)
    assert model_bytes == saved
    assert sign(onnx.load_model_from_string(saved)) == saved


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, saved: bytes) -> None:
    model = make_tiny_classifier(CLASSES)
    before = model.SerializeToString(deterministic=True)
    digest = save_artifact(tmp_path / "again.onnx", model, make_tiny_metadata(CLASSES))
    assert (tmp_path / "again.onnx").read_bytes() == saved
    assert saved.endswith(digest.encode())
    assert model.SerializeToString(deterministic=True) == before
    other = save_artifact(tmp_path / "other.onnx", make_tiny_classifier(CLASSES, seed=1), make_tiny_metadata(CLASSES))
    assert other != digest


def test_the_order_of_keys_does_not_change_the_bytes(tmp_path: Path, saved: bytes) -> None:
    metadata = make_tiny_metadata(CLASSES)
    turned = dict(reversed(metadata.preprocess.items()))
    save_artifact(tmp_path / "a.onnx", make_tiny_classifier(CLASSES), dataclasses.replace(metadata, preprocess=turned))
    assert (tmp_path / "a.onnx").read_bytes() == saved


def test_onnx_finds_the_file_valid(saved: bytes) -> None:
    onnx.checker.check_model(onnx.load_model_from_string(saved), full_check=True)


def test_labels_of_every_script_come_back(tmp_path: Path) -> None:
    labels = ("größe", "猫", "a:b", "\udcff not UTF-8", "x" * 200, "<b>")
    save_artifact(tmp_path / "a.onnx", make_tiny_classifier(labels), make_tiny_metadata(labels))
    assert read_artifact(tmp_path / "a.onnx")[0].labels == labels


def test_a_file_of_format_1_keeps_loading() -> None:
    expected = json.loads((DATA / "format-1.json").read_text())
    metadata, model_bytes = read_artifact(DATA / "format-1.onnx")
    picture = (np.arange(20 * 30 * 3) % 251).astype(np.uint8).reshape(20, 30, 3)
    probs = create_session(model_bytes).run(None, {"image": picture})[0]
    assert list(metadata.labels) == expected["labels"]
    np.testing.assert_allclose(probs, expected["probabilities"], atol=1e-5)
    assert (DATA / "format-1.onnx").stat().st_size < 50_000


def test_a_file_of_format_2_keeps_loading() -> None:
    expected = json.loads((DATA / "format-2.json").read_text())
    metadata, model_bytes = read_artifact(DATA / "format-2.onnx")
    picture = (np.arange(20 * 30 * 3) % 251).astype(np.uint8).reshape(20, 30, 3)
    probs, familiarity = create_session(model_bytes).run(None, {"image": picture})
    assert list(metadata.labels) == expected["labels"]
    assert metadata.familiarity is not None
    assert metadata.familiarity["num_images"] == expected["num_images"]
    np.testing.assert_allclose(probs, expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(familiarity, [expected["familiarity"]], atol=1e-4)
    assert (DATA / "format-2.onnx").stat().st_size < 50_000


def test_a_file_of_format_1_can_be_saved_again(tmp_path: Path) -> None:
    metadata, data = read_artifact(DATA / "format-1.onnx")
    assert (metadata.format_version, metadata.familiarity) == (1, None)
    save_artifact(tmp_path / "again.onnx", onnx.load_model_from_string(data), metadata)
    assert (tmp_path / "again.onnx").read_bytes() == data


def test_a_familiarity_comes_back(saved_both: bytes) -> None:
    metadata, _ = parse_artifact(saved_both)
    assert (metadata.format_version, metadata.familiarity) == (2, TINY_FAMILIARITY)
    assert sign(onnx.load_model_from_string(saved_both)) == saved_both


def test_the_example_of_the_format_page_runs(tmp_path: Path, saved: bytes) -> None:
    page = (Path(__file__).parents[1] / "docs" / "file-format.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    from PIL import Image

    (tmp_path / "pets.onnx").write_bytes(saved)
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "picture.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(CLASSES)


# The refusal list: structure


def add_field(number: int) -> Callable[[onnx.ModelProto], bytes]:
    """Bytes of an empty length-delimited field, appended to the file."""
    return lambda model: bytes([(number << 3 | 2) & 0x7F | 0x80, number >> 4, 0])


def make_external(model: onnx.ModelProto) -> None:
    tensor = get_tensor(model, "conv_weight")
    tensor.external_data.add(key="location", value="/etc/passwd")


def mark_external(model: onnx.ModelProto) -> None:
    get_tensor(model, "conv_weight").data_location = TensorProto.EXTERNAL


def add_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [], [helper.make_opsetid("", 18)]))


def add_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["endless"], name="loop", body=body))


def add_node(*arguments: object, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.append(helper.make_node(*arguments, **attributes))  # type: ignore[arg-type]


def add_constant(values: np.ndarray, name: str = "extra") -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.initializer.append(numpy_helper.from_array(values, name))


def add_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(dims=[2])


def set_tensor(name: str, values: np.ndarray) -> Callable[[onnx.ModelProto], None]:
    return lambda model: get_tensor(model, name).CopyFrom(numpy_helper.from_array(values, name))


def set_dims(name: str, dims: list[int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        get_tensor(model, name).dims[:] = dims

    return change


def set_input(*values: onnx.ValueInfoProto) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.input[:]
        model.graph.input.extend(values)

    return change


def set_output(*values: onnx.ValueInfoProto) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.output[:]
        model.graph.output.extend(values)

    return change


def set_resize(**attributes: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Resize")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())

    return change


def use_scales(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 1e6, 1e6], np.float32), "scales"))
    next(node for node in model.graph.node if node.op_type == "Resize").input[2] = "scales"


def add_padding(model: onnx.ModelProto) -> None:
    add_constant(np.array([0, 0, 0, 0, 0, 0, 2**20, 2**20]), "pads")(model)
    add_node("Pad", ["nchw", "pads"], ["padded"], name="pad")(model)


def add_many_nodes(model: onnx.ModelProto) -> None:
    for index in range(5_000):
        model.graph.node.append(helper.make_node("Identity", ["image"], [f"copy{index}"]))


def tensor_value(name: str, kind: int, shape: list[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


EXTERNAL = "A tensor keeps its values outside the file (external data). A classifier file holds all its weights."
SUBGRAPH = "A node holds a graph of its own (as Loop, If and Scan do). A classifier file is one plain graph."
INPUT = "; expected image uint8 [any, any, 3] alone." + ADVICE
OUTPUT = "; expected probabilities float32 [K], K from 2 to 100000, alone or before familiarity float32 [1]." + ADVICE

STRUCTURE = {
    "3 external data": (make_external, EXTERNAL),
    "3 external mark": (
        mark_external,
        "The constant 'conv_weight' keeps its values outside the file (external data); expected them inside." + ADVICE,
    ),
    "3 external in an attribute": (
        add_node("Constant", [], ["c"], value=TensorProto(data_type=1, dims=[1], external_data=[{"key": "location"}])),
        EXTERNAL,
    ),
    "3 sparse": (
        add_sparse,
        "It holds a sparse tensor. A classifier file stores its weights as plain tensors.",
    ),
    "4 functions": (
        add_function,
        "It defines functions of its own. A classifier file uses standard operations only.",
    ),
    "5 sub-graph": (add_loop, SUBGRAPH),
    "5 sub-graphs": (
        lambda model: model.graph.node[0].attribute.append(
            helper.make_attribute("g", [helper.make_graph([], "g", [], [])])
        ),
        SUBGRAPH,
    ),
    "6 domain": (
        add_node("Relu", ["features"], ["x"], name="own", domain="com.microsoft"),
        "The operation 'Relu' of node 'own' has the domain 'com.microsoft'; expected none." + ADVICE,
    ),
    "6 opset domain": (
        lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
        "It imports the operator sets 'ai.onnx' 18, 'com.microsoft' 1; expected 'ai.onnx' 18 alone." + ADVICE,
    ),
    "6 opset version": (
        lambda model: setattr(model.opset_import[0], "version", 17),
        "It imports the operator sets 'ai.onnx' 17; expected 'ai.onnx' 18 alone." + ADVICE,
    ),
    "6 ir_version": (
        lambda model: setattr(model, "ir_version", 13),
        "Its ir_version is 13; expected 9." + ADVICE,
    ),
    **{
        f"7 {op}": (
            add_node(op, ["features"], ["x"], name="odd"),
            f"The operation '{op}' of node 'odd' is not one that a classifier file may use." + ADVICE,
        )
        for op in ("Loop", "NonZero", "StringNormalizer", "PyOp")
    },
    **{
        f"8 {op}": (
            add_node(op, ["features"], ["x"]),
            f"The operation '{op}' of node 'x' is not one that a classifier file may use." + ADVICE,
        )
        for op in ("ConstantOfShape", "Expand", "Tile", "Range", "EyeLike", "RandomNormal", "RandomUniformLike")
    },
    "8 huge constant": (
        set_dims("conv_weight", [2**13, 2**14]),
        "The constant 'conv_weight' has the shape [8192, 16384]; expected at most 67,108,864 values." + ADVICE,
    ),
    "8 overflowing shape": (
        set_dims("conv_weight", [2**62, 4, 0]),
        "The constant 'conv_weight' has the shape [4611686018427387904, 4, 0]; expected at most 67,108,864 values."
        + ADVICE,
    ),
    "8 negative shape": (
        set_dims("conv_weight", [-1, -216]),
        "The constant 'conv_weight' has the shape [-1, -216]; expected at most 67,108,864 values." + ADVICE,
    ),
    "8 missing values": (
        set_dims("conv_weight", [8, 3, 3, 4]),
        "The constant 'conv_weight' stores 216 values; its shape [8, 3, 3, 4] needs 288." + ADVICE,
    ),
    "8 values stored twice": (
        lambda model: get_tensor(model, "head_bias").float_data.extend([1, 2, 3]),
        "The constant 'head_bias' stores its values twice; expected one list of them." + ADVICE,
    ),
    "8 large Constant node": (
        add_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros(5000, np.float32))),
        "The tensor of node 'c' has the shape [5000]; expected at most 4,096 values." + ADVICE,
    ),
    "8 Resize to a huge size": (
        set_tensor("sizes", np.array([1, 3, 2**15, 2**15])),
        "The Resize of node 'resize' has no int64 constant as sizes, at most 67,108,864 values in all." + ADVICE,
    ),
    "8 Resize to a negative size": (
        set_tensor("sizes", np.array([1, 3, -8, -8])),
        "The Resize of node 'resize' has no int64 constant as sizes, at most 67,108,864 values in all." + ADVICE,
    ),
    "8 Resize by scales": (
        use_scales,
        "The Resize of node 'resize' has scales; expected sizes alone." + ADVICE,
    ),
    "8 Resize with aspect": (
        set_resize(keep_aspect_ratio_policy="not_smaller"),
        "The Resize of node 'resize' keeps the aspect ratio, so its sizes are not known; expected 'stretch'." + ADVICE,
    ),
    "8 Pad": (
        add_node("Pad", ["features", "batch_axis_two"], ["x"], name="pad"),
        "The Pad of node 'pad' has no int64 constant as pads, at most 4,096 each." + ADVICE,
    ),
    "8 Pad to a huge size": (
        add_padding,
        "The Pad of node 'pad' has no int64 constant as pads, at most 4,096 each." + ADVICE,
    ),
    "8 a constant shadowed by a node": (
        add_node("Shape", ["image"], ["sizes"]),
        "The value 'sizes' has two origins; expected one input, constant or node output of that name." + ADVICE,
    ),
    "9 nodes": (add_many_nodes, "It has 5,010 nodes; expected at most 5,000." + ADVICE),
    "9 name": (
        lambda model: setattr(model.graph.node[0], "name", "n" * 1025),
        "A name is 1,025 bytes long. The limit is 1,024.",
    ),
    "10 float input": (
        set_input(tensor_value("image", TensorProto.FLOAT, ["H", "W", 3])),
        "Its inputs are image float32 [any, any, 3]" + INPUT,
    ),
    "10 fixed size": (
        set_input(tensor_value("image", TensorProto.UINT8, [224, 224, 3])),
        "Its inputs are image uint8 [224, 224, 3]" + INPUT,
    ),
    "10 channels": (
        set_input(tensor_value("image", TensorProto.UINT8, ["H", "W", 4])),
        "Its inputs are image uint8 [any, any, 4]" + INPUT,
    ),
    "10 batch": (
        set_input(tensor_value("image", TensorProto.UINT8, ["N", "H", "W", 3])),
        "Its inputs are image uint8 [any, any, any, 3]" + INPUT,
    ),
    "10 name": (
        set_input(tensor_value("pixels", TensorProto.UINT8, ["H", "W", 3])),
        "Its inputs are pixels uint8 [any, any, 3]" + INPUT,
    ),
    "10 no input": (set_input(), "Its inputs are none" + INPUT),
    "10 two inputs": (
        set_input(
            tensor_value("image", TensorProto.UINT8, ["H", "W", 3]), tensor_value("size", TensorProto.INT64, [2])
        ),
        "Its inputs are image uint8 [any, any, 3], size int64 [2]" + INPUT,
    ),
    "10 output": (
        set_output(tensor_value("probabilities", TensorProto.FLOAT, [1, 3])),
        "Its outputs are probabilities float32 [1, 3]" + OUTPUT,
    ),
    "10 one class": (
        set_output(tensor_value("probabilities", TensorProto.FLOAT, [1])),
        "Its outputs are probabilities float32 [1]" + OUTPUT,
    ),
    "10 open output": (
        set_output(tensor_value("probabilities", TensorProto.FLOAT, ["K"])),
        "Its outputs are probabilities float32 [any]" + OUTPUT,
    ),
    "10 two outputs": (
        set_output(
            tensor_value("probabilities", TensorProto.FLOAT, [3]), tensor_value("logits", TensorProto.FLOAT, [1, 3])
        ),
        "Its outputs are probabilities float32 [3], logits float32 [1, 3]" + OUTPUT,
    ),
    **{
        f"10 familiarity as {shown}": (
            set_output(tensor_value("probabilities", TensorProto.FLOAT, [3]), *values),
            f"Its outputs are probabilities float32 [3], {shown}" + OUTPUT,
        )
        for shown, values in {
            "familiarity float32 [2]": [tensor_value("familiarity", TensorProto.FLOAT, [2])],
            "familiarity float32 []": [tensor_value("familiarity", TensorProto.FLOAT, [])],
            "familiarity float16 [1]": [tensor_value("familiarity", TensorProto.FLOAT16, [1])],
            "familiarity float32 [1], familiarity float32 [1]": [
                tensor_value("familiarity", TensorProto.FLOAT, [1]) for _ in range(2)
            ],
        }.items()
    },
    "10 familiarity first": (
        set_output(
            tensor_value("familiarity", TensorProto.FLOAT, [1]), tensor_value("probabilities", TensorProto.FLOAT, [3])
        ),
        "Its outputs are familiarity float32 [1], probabilities float32 [3]" + OUTPUT,
    ),
    "11 NaN": (
        set_tensor("head_bias", np.array([0, np.nan, 0], np.float32)),
        "The constant 'head_bias' holds NaN or infinity; expected finite numbers." + ADVICE,
    ),
    "11 infinity": (
        set_tensor("head_weight", np.full((8, 3), np.inf, np.float32)),
        "The constant 'head_weight' holds NaN or infinity; expected finite numbers." + ADVICE,
    ),
    "14 training_info": (
        lambda model: model.training_info.add(),
        "It holds training_info. A classifier file holds nothing that only training uses.",
    ),
    "14 quantization_annotation": (
        lambda model: model.graph.quantization_annotation.add(tensor_name="x"),
        "It holds quantization_annotation entries. A classifier file holds none.",
    ),
    "14 device configuration": (
        lambda model: model.configuration.add(name="gpu"),
        "It holds device configurations. A classifier file runs on any machine and holds none.",
    ),
}


@pytest.mark.parametrize("case", STRUCTURE)
@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_structure_that_is_refused(saved: bytes, case: str, allow_unsigned: bool) -> None:
    change, message = STRUCTURE[case]
    assert refuse(edit(saved, change), allow_unsigned=allow_unsigned) == message


METADATA: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "11 labels are an object": (
        set_entry("labels", {}),
        "headstart.labels is an object with 0 keys; expected a list of texts.",
    ),
    "11 labels are numbers": (
        set_entry("labels", [1, 2, 3]),
        "headstart.labels is a list of 3; expected a list of texts.",
    ),
    "11 labels are not JSON": (
        set_entry("labels", "['cat']"),
        "headstart.labels is not JSON: Expecting value: line 1 column 2 (char 1).",
    ),
    "11 labels are deep": (
        set_entry("labels", "[" * 100_000),
        "headstart.labels is not JSON: it is nested too deeply.",
    ),
    "11 too few labels": (
        set_entry("labels", ["cat", "dog"]),
        "headstart.labels has 2 labels; the output has 3 classes.",
    ),
    "11 same label": (
        set_entry("labels", ["cat", "dog", "cat"]),
        "headstart.labels has 'cat' 2 times; expected different labels.",
    ),
    "11 empty label": (set_entry("labels", ["cat", "dog", ""]), "The label '' has 0 characters; expected 1 to 200."),
    "11 long label": (
        set_entry("labels", ["cat", "dog", "x" * 201]),
        f"The label '{'x' * 57}...' has 201 characters; expected 1 to 200.",
    ),
    "11 control character": (
        set_entry("labels", ["cat", "dog", "a\x1b[2J"]),
        r"The label 'a\x1b[2J' holds control characters.",
    ),
    "12 size": (
        set_key("preprocess", "input_size_px", 0),
        "headstart.preprocess: input_size_px is 0; expected a whole number from 8 to 4096.",
    ),
    "12 size is a truth value": (
        set_key("preprocess", "input_size_px", True),
        "headstart.preprocess: input_size_px is true; expected a whole number from 8 to 4096.",
    ),
    "12 size is endless": (
        set_key("preprocess", "input_size_px", 10**400),
        f"headstart.preprocess: input_size_px is 1{'0' * 56}...; expected a whole number from 8 to 4096.",
    ),
    "12 crop": (
        set_key("preprocess", "crop_frac", 1.5),
        "headstart.preprocess: crop_frac is 1.5; expected a number above 0 and at most 1.",
    ),
    "12 interpolation": (
        set_key("preprocess", "interpolation", "lanczos"),
        "headstart.preprocess: interpolation is \"lanczos\"; expected 'cubic' or 'linear'.",
    ),
    "12 mean": (
        set_key("preprocess", "mean", [0, 0]),
        "headstart.preprocess: mean is a list of 2; expected three numbers from -255 to 255.",
    ),
    "12 std": (
        set_key("preprocess", "std", [1, 1, 0]),
        "headstart.preprocess: std is a list of 3; expected three numbers from 0.001 to 255.",
    ),
    "12 NaN": (
        set_key("preprocess", "crop_frac", float("nan")),
        "headstart.preprocess is not JSON: NaN is not a JSON number.",
    ),
    "12 infinity": (
        set_entry("preprocess", '{"crop_frac": 1e999}'),
        "headstart.preprocess is not JSON: a number is too large.",
    ),
    "12 key twice": (
        set_entry("preprocess", '{"crop_frac": 1, "crop_frac": 0.5}'),
        "headstart.preprocess is not JSON: an object has a key twice.",
    ),
    "12 exif": (
        set_key("preprocess", "exif", "ignored"),
        "headstart.preprocess: exif is \"ignored\"; expected 'applied'.",
    ),
    "12 alpha": (set_key("preprocess", "alpha", ...), "headstart.preprocess has no alpha; expected 'white'."),
    "12 unknown key": (
        set_key("preprocess", "interpolatoin", "cubic"),
        "headstart.preprocess has the unknown key 'interpolatoin'. Did you mean 'interpolation'?",
    ),
    "backbone": (
        set_key("backbone", "sha256", "ABC"),
        'headstart.backbone: sha256 is "ABC"; expected 64 hexadecimal digits.',
    ),
    "head": (
        set_key("head", "temperature", 0),
        "headstart.head: temperature is 0; expected a number above 0.",
    ),
    "layers": (
        set_key("head", "layers", [["stage6", 0]]),
        "headstart.head: layers is a list of 1; expected a list of [layer name, grid from 1].",
    ),
    "crop": (
        set_key("preprocess", "crop", "center"),
        "headstart.preprocess: crop is \"center\"; expected 'centre' or 'after-resize' or 'squash'.",
    ),
    "crop is misspelt": (
        set_key("preprocess", "crops", "squash"),
        "headstart.preprocess has the unknown key 'crops'. Did you mean 'crop'?",
    ),
    "head's kind": (
        set_key("head", "kind", None),
        "headstart.head: kind is null; expected 'linear' or 'svm' or 'dense'.",
    ),
    "head's pooling": (
        set_key("head", "pooling", ["max"]),
        "headstart.head: pooling is a list of 1; expected 'average' or 'max' or 'flatten'.",
    ),
    **{
        f"head's hidden {value}": (
            set_key("head", "hidden", value),
            f"headstart.head: hidden is {shown}; expected a list of whole numbers from 1.",
        )
        for value, shown in ((100, "100"), ([100, 0], "a list of 2"), ([True], "a list of 1"))
    },
    **{
        f"head's dropout {value}": (
            set_key("head", "dropout", value),
            f"headstart.head: dropout is {shown}; expected a list of numbers from 0 to below 1.",
        )
        for value, shown in ((0.5, "0.5"), ([0.5, 1], "a list of 2"), ([-0.1], "a list of 1"), (["0.5"], "a list of 1"))
    },
    "head's activation": (
        set_key("head", "activation", "relu"),
        "headstart.head: activation is \"relu\"; expected 'softmax' or 'sigmoid'.",
    ),
    "settings": (set_entry("settings", []), "headstart.settings is a list of 0; expected an object."),
    "data": (set_key("data", "num_train", -1), "headstart.data: num_train is -1; expected a whole number from 0."),
    "evaluation": (set_entry("evaluation", 0.5), "headstart.evaluation is 0.5; expected an object or null."),
    "created_with": (set_entry("created_with", "a\nb"), "headstart.created_with is not 1 to 200 printable characters."),
    "unknown entry": (
        lambda model: model.metadata_props.add(key="headstart.label", value="[]"),
        "The metadata entry 'headstart.label' is unknown. Did you mean 'headstart.labels'?",
    ),
    "entry twice": (
        lambda model: model.metadata_props.add(key="headstart.labels", value="[]"),
        "The metadata entry 'headstart.labels' is given twice.",
    ),
}


@pytest.mark.parametrize("case", METADATA)
@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_metadata_that_is_refused(saved: bytes, case: str, allow_unsigned: bool) -> None:
    change, message = METADATA[case]
    assert refuse(edit(saved, change), allow_unsigned=allow_unsigned) == message + ADVICE


@pytest.mark.parametrize(
    ("preprocess", "head"),
    [
        ({"crop": "centre"}, {"kind": "linear"}),
        ({"crop": "squash"}, {"kind": "svm", "penalty": 3.0}),
        (
            {},
            {
                "kind": "dense",
                "pooling": "flatten",
                "hidden": [100, 100, 100],
                "dropout": [0, 0.5],
                "activation": "softmax",
                "penalty": None,
            },
        ),
        ({}, {"kind": "dense", "pooling": "max", "hidden": [], "dropout": [], "activation": "sigmoid"}),
    ],
)
def test_keys_that_may_be_absent(saved: bytes, preprocess: dict[str, object], head: dict[str, object]) -> None:
    def change(model: onnx.ModelProto) -> None:
        for name, values in (("preprocess", preprocess), ("head", head)):
            for key, value in values.items():
                set_key(name, key, value)(model)

    metadata, _ = parse_artifact(edit(saved, change))
    good = make_tiny_metadata(CLASSES)
    assert metadata.preprocess == {**good.preprocess, **preprocess}
    assert metadata.head == {**good.head, **head}


def test_all_problems_are_listed_at_once(saved: bytes) -> None:
    def change(model: onnx.ModelProto) -> None:
        for name, key, value in (
            ("preprocess", "crop_frac", 2),
            ("head", "temperature", -1),
            ("data", "num_test", 0.5),
        ):
            set_key(name, key, value)(model)
        set_entry("labels", ["cat", "dog"])(model)
        add_node("Expand", ["features"], ["x"])(model)

    assert refuse(edit(saved, change)) == (
        "5 problems:\n"
        "  The operation 'Expand' of node 'x' is not one that a classifier file may use.\n"
        "  headstart.labels has 2 labels; the output has 3 classes.\n"
        "  headstart.preprocess: crop_frac is 2; expected a number above 0 and at most 1.\n"
        "  headstart.head: temperature is -1; expected a number above 0.\n"
        "  headstart.data: num_test is 0.5; expected a whole number from 0.\n" + ADVICE.strip()
    )


def test_a_list_of_problems_has_an_end(saved: bytes) -> None:
    message = refuse(edit(saved, set_entry("labels", [f"\x01{index}" for index in range(50_000)])))
    assert message.count("\n") == 12
    assert "and 49991 more" in message


def test_a_newer_format_asks_for_an_upgrade(saved: bytes) -> None:
    assert refuse(edit(saved, set_entry("format", "3"))) == (
        "The file has format 3; this headstart reads formats 1 to 2. "
        "It was made by a newer headstart: upgrade with pip install --upgrade headstart."
    )
    assert refuse(edit(saved, set_entry("format", "0"))) == "headstart.format is '0'; expected '1' or '2'." + ADVICE
    assert refuse(edit(saved, set_entry("format", ""))) == "headstart.format is ''; expected '1' or '2'." + ADVICE


DESCRIBES_NONE = "It has an output familiarity, and headstart.familiarity does not describe it." + ADVICE


@pytest.mark.parametrize("allow_unsigned", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("familiarity", None), DESCRIBES_NONE),
        (
            set_entry("familiarity", []),
            "headstart.familiarity is a list of 0; expected an object." + ADVICE,
        ),
        (
            set_key("familiarity", "layer", ["pooled", 0]),
            "headstart.familiarity: layer is a list of 2; expected [layer name, grid from 1]." + ADVICE,
        ),
        (
            set_key("familiarity", "shares", [0.5, 2]),
            "headstart.familiarity: shares is a list of 2; expected a list of numbers from 0 to 1." + ADVICE,
        ),
        (
            set_key("familiarity", "tail_width", 0),
            "headstart.familiarity: tail_width is 0; expected a number above 0." + ADVICE,
        ),
        (
            set_key("familiarity", "num_images", ...),
            "headstart.familiarity has no num_images; expected a whole number from 1." + ADVICE,
        ),
        (
            lambda model: model.graph.output.pop(),
            "It has no output familiarity, and headstart.familiarity describes one." + ADVICE,
        ),
    ],
)
def test_a_familiarity_that_is_told_wrongly(
    saved_both: bytes, change: Callable[[onnx.ModelProto], None], message: str, allow_unsigned: bool
) -> None:
    assert refuse(edit(saved_both, change), allow_unsigned=allow_unsigned) == message


def test_format_1_has_no_familiarity(saved: bytes, saved_both: bytes) -> None:
    found = refuse(edit(saved_both, set_entry("format", "1")))
    assert found == "The metadata entry 'headstart.familiarity' is unknown in format 1." + ADVICE
    assert "unknown in format 1" in refuse(edit(saved, set_entry("format", "1")))
    nothing_told = edit(remove_entries(saved_both, "familiarity"), set_entry("format", "1"))
    assert refuse(nothing_told) == DESCRIBES_NONE
    assert (
        refuse(edit(remove_entries(saved_both, "familiarity"), lambda model: None))
        == "It has no metadata entry headstart.familiarity." + ADVICE
    )


def test_a_foreign_file_may_have_a_familiarity(saved_both: bytes) -> None:
    model = onnx.load_model_from_string(saved_both)
    del model.metadata_props[:]
    metadata, model_bytes = parse_artifact(model.SerializeToString(), allow_unsigned=True)
    assert metadata.familiarity is None
    assert len(create_session(model_bytes).get_outputs()) == 2


@pytest.mark.parametrize(("scale", "shown"), [(-3.0, "[-1.5]"), (3.0, "[1.5]"), (1e38, "[inf]")])
def test_a_familiarity_out_of_range_is_refused(saved_both: bytes, scale: float, shown: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        add_constant(np.array(scale, np.float32), "scale")(model)
        steps = ["share", *(f"scaled{step}" for step in range(3 if shown == "[inf]" else 1))]
        for before, after in itertools.pairwise(steps):
            model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Mul", [before, "scale"], [after]))
        model.graph.node[-1].input[0] = steps[-1]

    _, model_bytes = parse_artifact(edit(saved_both, change))
    expected = f"A black picture gives the familiarity {shown}; expected a number from 0 to 1. " + ADVICE.strip()
    with pytest.raises(ArtifactError) as caught:
        create_session(model_bytes)
    assert str(caught.value) == expected


def remove_entries(saved: bytes, *names: str) -> bytes:
    model = onnx.load_model_from_string(saved)
    kept = [entry for entry in model.metadata_props if entry.key.removeprefix("headstart.") not in names]
    entries = [(entry.key, entry.value) for entry in kept]
    del model.metadata_props[:]
    for key, value in entries:
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


ALL_NAMES = "format labels preprocess backbone head settings data evaluation familiarity created_with sha256".split()  # noqa: SIM905


def test_a_foreign_file_needs_allow_unsigned(saved: bytes) -> None:
    foreign = remove_entries(saved, *ALL_NAMES)
    assert refuse(foreign) == (
        "This may be an ONNX file, but headstart did not save it: it has no headstart.format entry. "
        "To use a foreign file with the same input and output, add --allow-unsigned."
    )
    metadata, model_bytes = parse_artifact(foreign, allow_unsigned=True)
    assert (metadata.labels, metadata.format_version, metadata.preprocess) == (("0", "1", "2"), 0, {})
    assert create_session(model_bytes).get_outputs()[0].shape == [3]


def test_a_missing_or_wrong_hash_is_refused_unless_allowed(saved: bytes) -> None:
    unsigned = remove_entries(saved, "sha256")
    assert refuse(unsigned) == (
        "Its last metadata entry is not headstart.sha256: it was edited, or saved by another tool." + ADVICE
    )
    edited = saved.replace(b'"cat"', b'"cow"')
    assert refuse(edited) == DAMAGED
    assert parse_artifact(unsigned, allow_unsigned=True)[0] == make_tiny_metadata(CLASSES)
    assert parse_artifact(edited, allow_unsigned=True)[0].labels == ("cow", "dog", "owl")


@pytest.mark.parametrize("name", [name for name in ALL_NAMES if name not in ("format", "sha256")])
def test_every_entry_is_required(saved: bytes, name: str) -> None:
    data = sign(onnx.load_model_from_string(remove_entries(saved, name)))
    assert refuse(data) == f"It has no metadata entry headstart.{name}." + ADVICE


# Files of other kinds


def make_zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return buffer.getvalue()


RUNS_CODE = (
    "; it can run code when opened. headstart does not open such files. Give the .onnx file that headstart saved."
)
NOT_ONE = ", not a classifier file. Give the .onnx file that headstart saved."
SAFETENSORS = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
OTHER_KINDS = {
    "empty": (b"", "The file is empty. Copy it again from where it was saved, or train again."),
    **{
        f"pickle {protocol}": (
            pickle.dumps({"weights": [1.0]}, protocol=protocol),
            "This is a Python pickle (.pkl, .joblib or an old PyTorch file)" + RUNS_CODE,
        )
        for protocol in range(2, 6)
    },
    "pt": (
        make_zip("archive/data.pkl", "archive/version"),
        "This is a PyTorch file (a ZIP archive with a pickle inside)" + RUNS_CODE,
    ),
    "keras": (
        make_zip("metadata.json", "config.json", "model.weights.h5"),
        "This is a Keras file (.keras)" + RUNS_CODE,
    ),
    "zip": (make_zip("a.txt"), "This is a ZIP archive" + NOT_ONE),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "This is an HDF5 file (.h5, as Keras and others write it)" + RUNS_CODE),
    "safetensors": (
        len(SAFETENSORS).to_bytes(8, "little") + SAFETENSORS + bytes(4),
        "This is a safetensors file (weights without a network)" + NOT_ONE,
    ),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(90), "This is a TensorFlow Lite model" + NOT_ONE),
    "ort": (b"\x1c\0\0\0ORTM" + bytes(90), "This is a model in ONNX Runtime's own format (.ort)" + NOT_ONE),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(90), "This is a picture" + NOT_ONE),
    "gzip": (b"\x1f\x8b\x08" + bytes(90), "This is a compressed file" + NOT_ONE),
    "text": (b"cat,dog\n1,2\n", "This is text" + NOT_ONE),
    "html": (b"<!DOCTYPE html><html>404</html>", "This is HTML text" + NOT_ONE),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "This is a Git LFS pointer (fetch the file itself with git lfs pull)" + NOT_ONE,
    ),
    "zeros": (
        bytes(1000),
        "The file is damaged, or is not an ONNX file (an unknown field, number 0). "
        "Copy it again from where it was saved, or train again.",
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_other_kinds_of_files_are_named(tmp_path: Path, kind: str, allow_unsigned: bool) -> None:
    data, message = OTHER_KINDS[kind]
    path = tmp_path / "pets.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path, allow_unsigned=allow_unsigned)
    assert str(caught.value) == f"{path}: {message}"


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "pets.onnx").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31)
    cases = {
        tmp_path: "This is a folder. A classifier is one .onnx file: give the path of that file.",
        tmp_path / "pet.onnx": "There is no such file. Did you mean 'pets.onnx'? "
        "Give the path of a classifier that headstart saved.",
        tmp_path / "none" / "a.onnx": "There is no such file. Give the path of a classifier that headstart saved.",
        tmp_path / "pets.onnx" / "a": "The file cannot be opened: Not a directory. Check the path and its permissions.",
        tmp_path / "pipe": "This is not a regular file. A classifier is one .onnx file on disk.",
        tmp_path / "huge.onnx": "The file has 2,147,483,648 bytes. A classifier file has less than 2 GiB.",
        tmp_path / "a\0b": "The file cannot be opened: embedded null byte. Check the path and its permissions.",
    }
    for path, message in cases.items():
        with pytest.raises(ArtifactError) as caught:
            read_artifact(path)
        assert str(caught.value) == f"{_files.show_path(str(path))}: {message}"


# Damage


def test_every_flipped_bit_is_noticed(saved: bytes) -> None:
    rng = random.Random(0)
    places = rng.sample(range(len(saved) * 8), 200) + list(range(len(saved) * 8 - 86 * 8, len(saved) * 8, 5))
    for place in places:
        damaged = bytearray(saved)
        damaged[place // 8] ^= 1 << place % 8
        refuse(bytes(damaged))


def test_every_cut_and_every_extra_byte_is_noticed(saved: bytes) -> None:
    for length in random.Random(1).sample(range(len(saved)), 200):
        refuse(saved[:length])
    for extra in (b"\0", b"\x72\x00", saved[-86:], saved):
        refuse(saved + extra)


def test_damage_without_the_hash_ends_in_an_artifact_error_or_a_sound_file(saved: bytes) -> None:
    """With allow_unsigned nothing but the rules stands between damage and ONNX Runtime."""
    rng = random.Random(2)
    for _ in range(300):
        damaged = bytearray(saved)
        for place in rng.sample(range(len(saved)), rng.choice((1, 3, 30))):
            damaged[place] = rng.randrange(256)
        try:
            parse_artifact(bytes(damaged), allow_unsigned=True)
        except ArtifactError as error:
            assert len(str(error)) < 5_000  # noqa: PT017


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(data: bytes, allow_unsigned: bool) -> None:
    refuse(data, allow_unsigned=allow_unsigned)
    refuse(b"\x08\x09\x3a" + data, allow_unsigned=allow_unsigned)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(ALL_NAMES[:-1]),
    value=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50) | JSON_VALUES.map(json.dumps),
)
def test_metadata_of_any_content_is_refused_or_kept(saved: bytes, name: str, value: str) -> None:
    data = edit(saved, set_entry(name, value))
    try:
        metadata, _ = parse_artifact(data)
    except ArtifactError as error:
        assert len(str(error)) < 5_000  # noqa: PT017
    else:
        stored = metadata.format_version if name == "format" else getattr(metadata, name)
        expected = value if name in ("format", "created_with") else json.loads(value)
        assert (str(stored) if name == "format" else stored) == (tuple(expected) if name == "labels" else expected)


@settings(max_examples=150, deadline=None)
@given(part=st.sampled_from(["preprocess", "backbone", "head", "settings", "data"]), choice=st.data())
def test_one_wrong_value_never_breaks_the_reader(saved: bytes, part: str, choice: st.DataObject) -> None:
    keys = sorted(getattr(make_tiny_metadata(CLASSES), part))
    key, value = choice.draw(st.sampled_from(keys)), choice.draw(JSON_VALUES)
    try:
        metadata, _ = parse_artifact(edit(saved, set_key(part, key, value)))
    except ArtifactError as error:
        assert part in str(error)  # noqa: PT017
    else:
        assert getattr(metadata, part)[key] == value


BOMBS = {
    "empty nodes": lambda saved: b"\x08\x09\x3a\x80\x80\x80\x01" + b"\x0a\x00" * 2**20,
    "labels": lambda saved: edit(saved, set_entry("labels", ["x"] * 500_000)),
    "unknown keys": lambda saved: edit(saved, set_entry("preprocess", {f"crop_frac{i}": 0 for i in range(200_000)})),
    "entries": lambda saved: edit(
        saved, lambda model: [model.metadata_props.add(key=f"headstart.label{i}" * 40) for i in range(20_000)]
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_cannot_take_much_time_or_memory(saved: bytes, bomb: str) -> None:
    data = BOMBS[bomb](saved)
    start = time.process_time()
    refuse(data, allow_unsigned=True)
    assert time.process_time() - start < 4
    tracemalloc.start()
    refuse(data, allow_unsigned=True)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100 * 2**20


# Sessions


def test_a_session_gives_probabilities_for_any_size(saved: bytes) -> None:
    session = create_session(saved)
    rng = np.random.default_rng(0)
    for height_px, width_px in ((1, 1), (7, 300), (224, 224)):
        picture = rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
        probs = session.run(None, {"image": picture})[0]
        assert (probs.shape, probs.dtype) == ((3,), np.float32)
        assert probs.sum() == pytest.approx(1, abs=1e-6)


def test_a_session_takes_nothing_from_the_file_or_the_environment(
    saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variable set, a file could bring session options, here one that writes a profile."""
    config = json.dumps({"session_options": {"enable_profiling": 1}})
    data = edit(
        saved, lambda model: model.metadata_props.insert(0, onnx.StringStringEntryProto(key="ort_config", value=config))
    )
    assert refuse(data) == "The metadata entry 'ort_config' is unknown." + ADVICE
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    monkeypatch.chdir(tmp_path)
    create_session(parse_artifact(data, allow_unsigned=True)[1])
    assert "ORT_LOAD_CONFIG_FROM_MODEL" not in os.environ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.graph.node[-2].CopyFrom(
                helper.make_node("Identity", ["logits"], ["probabilities_batch"], name="softmax")
            ),
            "A black picture gives shape [3] with sum 0",
        ),
        (
            lambda model: setattr(model.graph.node[4], "op_type", "Tanh"),
            "ONNX Runtime cannot run this graph: ",
        ),
        (
            lambda model: model.graph.node[5].input.__setitem__(0, "nowhere"),
            "ONNX Runtime cannot run this graph: ",
        ),
    ],
)
def test_a_graph_that_does_not_run_is_refused(
    saved: bytes, change: Callable[[onnx.ModelProto], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, model_bytes = parse_artifact(edit(saved, change))
    with pytest.raises(ArtifactError, match="^" + re.escape(message)):
        create_session(model_bytes)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_runs_too_long_is_stopped(saved: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(model: onnx.ModelProto) -> None:
        for size_px in (600, 601):
            add_constant(np.array([1, 3, size_px, size_px]), f"size{size_px}")(model)
        for index in range(400):
            inputs = [f"large{index - 1}" if index else "nchw", "", "", f"size{600 + index % 2}"]
            model.graph.node.append(helper.make_node("Resize", inputs, [f"large{index}"], mode="cubic", antialias=1))
        # The result takes part in the output; else ONNX Runtime would drop the nodes.
        next(node for node in model.graph.node if node.name == "resize").input[0] = "large399"

    _, model_bytes = parse_artifact(edit(saved, change))
    monkeypatch.setattr(artifact, "RUN_LIMIT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(
        ArtifactError, match=r"^ONNX Runtime cannot run this graph: one picture takes more than 0\.2 s\. "
    ):
        create_session(model_bytes)
    assert time.monotonic() - start < 5


def test_reading_and_running_do_not_import_onnx(tmp_path: Path, saved: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(saved)
    code = (
        "import sys; from headstart import artifact\n"
        "artifact.create_session(artifact.read_artifact('a.onnx')[1])\n"
        "print([name for name in ('onnx', 'google.protobuf', 'sklearn', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Writing


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    good = make_tiny_metadata(CLASSES)
    model = make_tiny_classifier(CLASSES)
    add_node("Expand", ["features"], ["x"])(model)
    with pytest.raises(ArtifactError) as caught:
        save_artifact(path, model, good)
    assert str(caught.value) == (
        f"{path} was not written. The operation 'Expand' of node 'x' is not one that a classifier file may use."
        + ADVICE
    )
    broken = make_tiny_classifier(CLASSES)
    broken.graph.node[-2].op_type = "Identity"
    del broken.graph.node[-2].attribute[:]
    with pytest.raises(ArtifactError, match=r"was not written\. A black picture gives shape"):
        save_artifact(path, broken, good)
    with pytest.raises(ArtifactError, match=r"headstart\.labels has 2 labels; the output has 3 classes"):
        save_artifact(path, make_tiny_classifier(CLASSES), make_tiny_metadata(["cat", "dog"]))
    for value, reason in (
        (float("nan"), "Out of range float values are not JSON compliant"),
        (object(), "Object of type object is not JSON serializable"),
    ):
        good.settings["rate"] = value
        with pytest.raises(ArtifactError, match=f"headstart.settings cannot be written as JSON: {reason}"):
            save_artifact(path, make_tiny_classifier(CLASSES), good)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bytes, call: str, number: int
) -> None:
    """The n-th call fails. Where a save makes fewer calls, or the rename came before, the new file is whole."""
    path = tmp_path / "a.onnx"
    path.write_bytes(saved)
    labels = ("ant", "bee")
    calls = {"count": 0, "failed": 0}

    def fail_at(function: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **keywords: object) -> object:
            calls["count"] += 1
            if calls["count"] == number:
                calls["failed"] = 1
                raise OSError(28, "No space left on device")
            return function(*arguments, **keywords)

        return wrapper

    model, metadata = make_tiny_classifier(labels), make_tiny_metadata(labels)
    with monkeypatch.context() as patch:
        if call == "write":
            # A real full device: the buffered writer's flush ends in write(2), which no wrapper in Python sees.
            import resource

            old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * number, old_limit[1]))
        else:
            patch.setattr(os, call, fail_at(getattr(os, call)))
        try:
            save_artifact(path, model, metadata)
            failed = False
        except HeadstartError as error:
            failed = True
            only_unflushed = (call, number) in {("fsync", 2), ("open", 2)}  # of the folder, after the rename
            told = f"{path} was written, but " if only_unflushed else f"Cannot write {path}: "
            assert str(error).startswith(told)  # noqa: PT017
        finally:
            if call == "write":
                resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
                signal.signal(signal.SIGXFSZ, old_handler)
    assert failed == (call == "write" or bool(calls["failed"]))
    found = read_artifact(path)[0].labels
    renamed = (call, number) in {("fsync", 2), ("open", 2), ("replace", 2)}
    assert found == (labels if renamed else CLASSES)
    assert list(tmp_path.iterdir()) == [path]


SAVE_FOREVER = """
import sys
import numpy
import onnx
sys.path.insert(0, {tests!r})
from tiny_models import make_tiny_classifier, make_tiny_metadata
from headstart import artifact

write = artifact.write_atomic

def tell_and_write(path, data):
    print("writing", flush=True)
    write(path, data)
    print("written", flush=True)

artifact.write_atomic = tell_and_write
pairs = [(make_tiny_classifier(names), make_tiny_metadata(names)) for names in (["a", "b"], ["c", "d"])]
for model, _ in pairs:  # large enough for a kill to fall into the writing
    model.graph.initializer.append(onnx.numpy_helper.from_array(numpy.ones(2**20, numpy.float32), "ballast"))
while True:
    for model, metadata in pairs:
        artifact.save_artifact("pets.onnx", model, metadata)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "pets.onnx"
    code = SAVE_FOREVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code]
    rng = random.Random(0)
    cut_short = 0
    save_artifact(path, make_tiny_classifier(["a", "b"]), make_tiny_metadata(["a", "b"]))
    for _ in range(20):
        with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"writing\n"
            start = time.monotonic()
            assert child.stdout.readline() == b"written\n"
            duration_s = time.monotonic() - start
            for _ in range(rng.choice((0, 2))):
                child.stdout.readline()
            assert child.stdout.readline() == b"writing\n"
            time.sleep(rng.uniform(0, duration_s))
            child.send_signal(signal.SIGKILL)
            cut_short += child.stdout.read() == b""
        assert child.returncode == -signal.SIGKILL
        metadata, model_bytes = read_artifact(path)
        create_session(model_bytes)
        assert metadata.labels in {("a", "b"), ("c", "d")}
    assert cut_short >= 5  # else the kills came too late to prove anything
