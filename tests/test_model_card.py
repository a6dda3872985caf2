"""The model card: what it says, and that no text of a file becomes anything else in YAML, Markdown or HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart
from headstart.errors import ConfigError
from headstart.exporting.model_card import escape_markdown, quote_yaml, render_model_card, write_model_card

yaml = pytest.importorskip("yaml")
EVIL = '<script>alert(1)</script> | [x](http://e.vil) *b* `c` & "q" \\ www.evil.example #1: {y} ]]> \u202e'


def read_front(card: str) -> dict[str, Any]:
    empty, front, _ = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front)


def test_front_matter(classifier: headstart.Classifier, tmp_path: Path) -> None:
    write_model_card(classifier, tmp_path / "README.md", title="Shapes: all", file_name="shapes.onnx")
    card = (tmp_path / "README.md").read_text()
    front = read_front(card)
    assert front["license"] == "apache-2.0"
    assert (front["library_name"], front["pipeline_tag"]) == ("onnx", "image-classification")
    assert {"headstart", "image-classification"} <= set(front["tags"])
    (entry,) = front["model-index"]
    assert entry["name"] == "Shapes: all"
    (result,) = entry["results"]
    assert result["task"]["type"] == "image-classification"
    told = classifier.metadata.evaluation
    assert told is not None
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["accuracy"] == pytest.approx(told["accuracy"]["value"], abs=1e-6)
    assert set(values) == {"accuracy", "balanced_accuracy", "f1", "log_loss", "ece"}
    assert all(isinstance(value, float) for value in values.values())
    assert all("interval" in metric["name"] for metric in result["metrics"])


def test_text(classifier: headstart.Classifier) -> None:
    card = render_model_card(classifier, file_name="shapes.onnx")
    metadata = classifier.metadata
    for text in (*classifier.classes, metadata.data["fingerprint"], metadata.backbone["name"], classifier.sha256):
        assert text in card
    assert f"Measured on {metadata.evaluation['n']} pictures" in card  # type: ignore[index]
    assert "95% confidence" in card
    assert 'headstart.load("shapes.onnx")' in card
    assert "The licence above is that of the pretrained network" in card
    assert "output, `familiarity`" in card
    assert "over the" not in render_model_card(classifier, licence="mit").split("## Limits")[1]


def test_the_python_of_the_card_runs(
    classifier: headstart.Classifier,
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    classifier.save("shapes.onnx")
    Image.open(sorted(trained.shapes.rglob("*.png"))[0]).convert("RGB").save("picture.jpg")
    blocks = re.findall(r"```python\n(.*?)```", render_model_card(classifier, file_name="shapes.onnx"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "card", "exec"), {})  # our own text, run as a reader would
    ours, bare = capsys.readouterr().out.splitlines()
    assert bare.split()[0] in ours


def test_hostile_texts(classifier: headstart.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = classifier.metadata
    hostile = replace(
        metadata,
        labels=(EVIL, "- list", "x\n---\nlicense: mit", "\U0001f415 Größe"),
        backbone={**metadata.backbone, "name": EVIL, "licence": EVIL, "source": EVIL},
        data={**metadata.data, "fingerprint": EVIL},
        created_with=EVIL,
    )
    monkeypatch.setattr(classifier, "metadata", hostile)
    monkeypatch.setattr(classifier, "classes", hostile.labels)
    card = render_model_card(classifier, title=EVIL)
    front = read_front(card)
    assert (front["license"], front["license_name"]) == ("other", EVIL)
    assert front["model-index"][0]["name"] == EVIL
    text = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<script", text)
    assert "[x](" not in text
    assert "www.evil" not in text
    assert "\u202e" not in text
    assert "\nlicense: mit" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 4}, "no cell is split"
    assert "\U0001f415 Größe" in text


def test_files_that_tell_little(classifier: headstart.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(
        classifier.metadata,
        preprocess={},
        backbone={},
        head={},
        settings={},
        data={},
        evaluation=None,
        familiarity=None,
    )
    monkeypatch.setattr(classifier, "metadata", bare)
    card = render_model_card(classifier)
    front = read_front(card)
    assert "model-index" not in front
    assert (front["license"], front["license_name"]) == ("other", "unknown")
    assert "The file holds no figures" in card
    assert "familiarity" not in card
    odd = {"accuracy": {"value": float("nan")}, "ece": 3, "log_loss": {"value": 1e-7, "low": None}, "n": "many"}
    monkeypatch.setattr(classifier, "metadata", replace(bare, evaluation=odd))
    card = render_model_card(classifier)
    (result,) = read_front(card)["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("log_loss", 0.0)]
    assert "Measured on an unknown number of pictures" in card


@settings(max_examples=100)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40))
def test_yaml_reads_back_what_was_written(text: str) -> None:
    assert yaml.safe_load(f"- {quote_yaml(text)}") == [text]


def test_markdown_of_usual_texts_stays_readable() -> None:
    assert escape_markdown("golden-retriever (old), 99.4 %") == "golden-retriever (old), 99.4 %"
    assert escape_markdown(3) == 3


@pytest.mark.parametrize("name", ["", "../x.onnx", 'a".onnx', "a b.onnx", "-x.onnx"])
def test_file_names(classifier: headstart.Classifier, name: str) -> None:
    with pytest.raises(ConfigError, match="The file's name is"):
        render_model_card(classifier, file_name=name)
