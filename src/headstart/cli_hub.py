"""The commands that push a classifier to a model hub and pull one from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headstart._files import show_path
from headstart.cli_options import ModelArgument, check_folder_of

RepositoryArgument = Annotated[str, typer.Argument(help="Repository on the hub, as user/name.")]


def push(
    model: ModelArgument,
    repository: RepositoryArgument,
    public: Annotated[bool, typer.Option("--public", help="Anybody may see it. Default: private.")] = False,
    title: Annotated[str | None, typer.Option(help="Title of the model card. Default: the repository's name.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="The classifier's licence, such as apache-2.0. Default: the backbone's.")
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Write the model card anew although there is one.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Upload a classifier and its model card to a model hub. No pictures, and nothing before you agree."""
    from headstart.hub import CARD_NAME, FILE_NAME, check_push, look_up, push_classifier
    from headstart.prediction import load

    classifier = load(model)
    found = check_push(look_up(repository, revision=None), public=public)
    kind = "public" if public and not (found.exists and found.is_private) else "private"
    names = FILE_NAME if CARD_NAME in found.files and not replace_card else f"{FILE_NAME} and {CARD_NAME}"
    state = f"the {kind} repository" if found.exists else f"a new {kind} repository"
    print(f"{show_path(str(model))}: {len(classifier.data) / 1e6:,.1f} MB, {len(classifier.classes)} classes")
    print(f"goes as {names} to {state} {found.endpoint}/{repository}")
    if not yes and not typer.confirm("Upload?"):
        raise typer.Exit(1)
    address = push_classifier(
        classifier, repository, public=public, title=title, licence=licence, replace_card=replace_card
    )
    print(f"{show_path(address)}\nSHA-256 {classifier.sha256}")


def pull(
    repository: RepositoryArgument,
    output: Annotated[Path | None, typer.Option(help="File to write. Default: NAME.onnx in this folder.")] = None,
    file: Annotated[str, typer.Option(help="Its name in the repository.")] = "classifier.onnx",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main.")] = None,
    sha256: Annotated[str | None, typer.Option(help="SHA-256 that the file must have.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another file of that name.")] = False,
) -> None:
    """Fetch a classifier from a model hub. It is checked as any other file before it is written."""
    from headstart.hub import pull_classifier

    target = output or Path(f"{repository.rpartition('/')[2]}.onnx")
    check_folder_of(target)
    pulled = pull_classifier(repository, target, file_name=file, revision=revision, sha256=sha256, overwrite=overwrite)
    labels = ", ".join(show_path(label) for label in pulled.classifier.classes[:8])
    more = ", ..." if len(pulled.classifier.classes) > 8 else ""
    print(f"Wrote {show_path(str(target))}: {len(pulled.classifier.classes)} classes ({labels}{more})")
    print(f"SHA-256 {pulled.sha256}, commit {show_path(pulled.commit)}")
