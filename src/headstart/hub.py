"""Classifiers to and from a model hub, by the hub's own client: one file and its card, private by default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart import __version__
from headstart._files import compute_sha256, show_path, write_atomic
from headstart.artifact import MAX_FILE_BYTES
from headstart.errors import ArtifactError, ConfigError, HeadstartError, MissingDependencyError
from headstart.exporting.model_card import render_model_card
from headstart.prediction import Classifier, load

FILE_NAME = "classifier.onnx"
"""What a classifier is called in a repository."""
CARD_NAME = "README.md"
_TIMEOUT_S = 3.5  # for the first answer; what follows has the client's own limits


@dataclass(frozen=True)
class Repository:
    """What the hub at `endpoint` says of a repository. `exists` is False also where the token may not see it.

    `commit` is None for one that is empty or does not exist; `files` maps each name to (size in bytes, SHA-256), either
    None where the hub does not tell.
    """

    repo_id: str
    endpoint: str
    exists: bool
    is_private: bool
    commit: str | None
    files: dict[str, tuple[int | None, str | None]]


@dataclass(frozen=True)
class PulledFile:
    """A classifier that was pulled, checked and written to `path`; `sha256` is that of the whole file."""

    path: Path
    sha256: str
    commit: str
    classifier: Classifier


def look_up(repo_id: str, *, revision: str | None = None) -> Repository:
    """Ask the hub (HF_ENDPOINT, or the client's default) for a repository `user/name`; nothing is changed.

    Raises ConfigError for a name that cannot be one, HeadstartError within about 5 s where the hub cannot be reached,
    MissingDependencyError without the extra hub.
    """
    api = _open_client(repo_id)
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        with _explained(api, repo_id):
            info = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT_S, files_metadata=True)
    except RepositoryNotFoundError:
        return Repository(repo_id, api.endpoint, False, True, None, {})
    files = {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()}
    return Repository(repo_id, api.endpoint, True, bool(info.private), info.sha, files)


def push_classifier(
    classifier: Classifier,
    repo_id: str,
    *,
    public: bool = False,
    title: str | None = None,
    licence: str | None = None,
    replace_card: bool = False,
) -> str:
    """Upload the classifier's file and its model card in one commit and return the commit's address.

    A repository that does not exist is made, private unless `public`. A card that is there is kept unless
    `replace_card`. The token is the client's (`hf auth login`, HF_TOKEN). Raises ConfigError where the repository is
    public and `public` was not said, ArtifactError for a foreign ONNX file, HeadstartError where the hub refuses or
    cannot be reached.
    """
    if classifier.metadata.format_version == 0:
        raise ArtifactError("This is a foreign ONNX file: nobody could pull it again. Push what headstart saved.")
    repository = check_push(look_up(repo_id), public=public)
    contents = {FILE_NAME: classifier.data}
    if CARD_NAME not in repository.files or replace_card:
        title = title or repo_id.partition("/")[2]
        card = render_model_card(classifier, title=title, file_name=FILE_NAME, licence=licence)
        contents[CARD_NAME] = card.encode()
    api = _open_client(repo_id)
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        with _explained(api, repo_id):
            if not repository.exists:
                api.create_repo(repo_id, private=not public)
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(name, data) for name, data in contents.items()],
                commit_message=f"Classifier of {len(classifier.classes)} classes",
            )
    except RepositoryNotFoundError:
        raise HeadstartError(f"{_say_where(api, repo_id)} cannot be written with your token. {_LOGIN}") from None
    return str(commit.commit_url)


def check_push(repository: Repository, *, public: bool) -> Repository:
    """The same, where a push to it makes sense: there is a token, and nobody is surprised who can see the upload.

    Raises HeadstartError and ConfigError.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise HeadstartError(f"You are not logged in to {repository.endpoint}. {_LOGIN}")
    if repository.exists and not repository.is_private and not public:
        raise ConfigError(
            f"{repository.repo_id} is public: anybody could fetch the classifier. To push it there all the same, add "
            "--public."
        )
    return repository


def pull_classifier(
    repo_id: str,
    output: str | os.PathLike[str],
    *,
    file_name: str = FILE_NAME,
    revision: str | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
) -> PulledFile:
    """Fetch a classifier file, check it as `headstart.load` does, and write it to `output`, whole or not at all.

    Its SHA-256 must be the one that the hub tells, and `sha256` (64 hexadecimal digits) where given: that alone says
    that it is the file you mean. An existing file is replaced only by the same one, or with `overwrite`. Raises
    ConfigError, ArtifactError for a file that is not a sound classifier, HeadstartError for what the hub says.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"The SHA-256 is {show_path(sha256)}; expected 64 hexadecimal digits.")
    target = Path(output)
    repository = look_up(repo_id, revision=revision)
    api = _open_client(repo_id)
    where = _say_where(api, repo_id)
    if not repository.exists:
        raise HeadstartError(f"There is no {where}, or it is private and your token may not see it. {_LOGIN}")
    if repository.commit is None or file_name not in repository.files:
        found = ", ".join(show_path(name) for name in repository.files if name.endswith(".onnx")) or "none"
        raise HeadstartError(
            f"{where} has no {show_path(file_name)}. Files that may be a classifier: {found}. Name one with --file."
        )
    size, told = repository.files[file_name]
    if size is not None and size > MAX_FILE_BYTES:
        raise ArtifactError(f"{show_path(file_name)} has {size:,} bytes. A classifier file has less than 2 GiB.")
    with _explained(api, repo_id):
        # The commit, not the branch: between the two questions another file may be pushed.
        path = api.hf_hub_download(repo_id, file_name, revision=repository.commit, etag_timeout=_TIMEOUT_S)
    data = Path(path).read_bytes()
    digest = compute_sha256(data)
    for expected, who in ((told, "the hub tells"), (sha256 and sha256.lower(), "you gave")):
        if expected and expected != digest:
            raise ArtifactError(
                f"{show_path(file_name)} of {where} has the SHA-256 {digest}, and {who} {expected}. Nothing was "
                f"written. If it was damaged on its way, delete {show_path(path)} and pull again."
            )
    try:
        classifier = load(data)
    except ArtifactError as error:
        raise ArtifactError(f"{show_path(file_name)} of {where}: {error} Nothing was written.") from error
    if not overwrite and target.exists() and not (target.is_file() and target.read_bytes() == data):
        raise ConfigError(f"{show_path(str(target))} is there already. Name another file, or add --overwrite.")
    write_atomic(target, data)
    return PulledFile(target, digest, repository.commit, classifier)


_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."


def _open_client(repo_id: str) -> Any:
    """The client with its telemetry off. Raises ConfigError, HeadstartError, MissingDependencyError."""
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise MissingDependencyError(
            "A model hub needs huggingface_hub. Install the extra: pip install 'headstart[hub]'"
        ) from None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}", repo_id):
        raise ConfigError(f"The repository is {show_path(repo_id)}; expected user/name, such as anna/pets.")
    constants.HF_HUB_DISABLE_TELEMETRY = True  # else every request tells what is installed, and who drives the client
    if constants.HF_HUB_OFFLINE:
        raise HeadstartError("HF_HUB_OFFLINE is set. Unset it to use the hub.")
    return HfApi(library_name="headstart", library_version=__version__)


@contextmanager
def _explained(api: Any, repo_id: str) -> Iterator[None]:
    """What the client raises as HeadstartError; a repository that is not found goes through."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    where = _say_where(api, repo_id)
    try:
        yield
    except RepositoryNotFoundError:
        raise
    except RevisionNotFoundError as error:
        raise HeadstartError(f"{where} has no such revision. Give a branch, a tag or a commit.") from error
    except HFValidationError as error:
        raise ConfigError(f"The repository is {show_path(repo_id)}: {_shorten(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise HeadstartError(f"{where} refuses your token (HTTP {status}). {_LOGIN}") from error
        raise HeadstartError(f"{where} answers HTTP {status}: {_shorten(error)}") from error
    except Exception as error:  # the client's own errors, those of its HTTP library and the system's share no base
        raise HeadstartError(
            f"{api.endpoint} cannot be used: {_shorten(_find_cause(error))} Check the network and HF_ENDPOINT, and run "
            "again."
        ) from error


def _find_cause(error: BaseException) -> BaseException:
    """The first error behind it: the client says no more than that an upload failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _say_where(api: Any, repo_id: str) -> str:
    return f"{api.endpoint}/{repo_id}"


def _shorten(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    shown = show_path(line[:300])
    return shown if shown.endswith((".", "!", "?")) else f"{shown}."
