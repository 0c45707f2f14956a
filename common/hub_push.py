"""Uploads to the Hugging Face Hub: checks of the account and of the repository's content, and the upload itself.

All checks run before anything is changed there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import hub
from common.errors import BadInput, line_of
from common.files import sha256

MAIN = "main"
TOKENS = "https://huggingface.co/settings/tokens"
CREATED_BY_HUB = (".gitattributes",)


@dataclass(frozen=True)
class Target:
    """A repository of the Hub. revision: a branch. replace: delete its files that are not in the upload."""

    repo: str
    revision: str = MAIN
    private: bool = False
    replace: bool = False

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def check_name(target: Target) -> None:
    """Raise BadInput for a repository or branch that cannot be one."""
    match = hub.NAME.fullmatch(target.repo)
    if match is None or match[2] is not None:
        raise BadInput(f"OWNER/NAME: expected owner/name, a model of the Hub, got {target.repo}.")
    if hub.NAME.fullmatch(f"{target.repo}@{target.revision}") is None or hub.COMMIT.fullmatch(target.revision):
        raise BadInput(f"--revision: not the name of a branch, got {target.revision}. Pass a name such as v2.")


def check(target: Target, folder: Path | None = None) -> None:
    """Check that this account may push there, and that no other files are there.

    folder: what will be uploaded; None: it does not exist yet, so a repository with files is rejected. Raises BadInput.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    check_name(target)
    if get_token() is None:
        raise BadInput(f"{target}: no token of the Hub here. Log in with `hf auth login`, or set HF_TOKEN.")
    with _hub_errors(target):
        _check_account(target, HfApi().whoami())
        try:
            info = HfApi().model_info(target.repo)
            if target.private and info.private is False:
                raise BadInput(
                    f"{target}: is public already, but --private was passed. Leave it out, or pass a new name."
                )
            remote = _remote_files(target)
        except RevisionNotFoundError:  # a branch that will be made
            return
        except RepositoryNotFoundError:
            return
    others = [name for name, file in remote.items() if folder is None or not _same(folder / name, file)]
    if others and not target.replace:
        named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        advice = (
            "Pass another name, or merge without --push and use slackmerge push with --revision or --replace."
            if folder is None
            else "Pass another name, --revision BRANCH, or --replace to delete them."
        )
        raise BadInput(f"{target}: holds other files already, got {named}. {advice}")


def push(folder: Path, target: Target, message: str) -> str:
    """Upload a folder, in a repository that is made if it is missing; return its address.

    An upload that was cut off continues when it is repeated. Raises BadInput.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api, replaces = HfApi(), target.replace
    with _hub_errors(target):
        address = api.create_repo(target.repo, private=target.private or None, exist_ok=True)
        if target.revision != MAIN:
            try:
                api.model_info(target.repo, revision=target.revision)
            except RevisionNotFoundError:  # a new branch begins with what main holds
                api.create_branch(target.repo, branch=target.revision)
                replaces = True
        api.upload_folder(
            repo_id=target.repo,
            folder_path=folder,
            revision=target.revision,
            commit_message=message,
            delete_patterns="*" if replaces else None,
        )
    return str(address) if target.revision == MAIN else f"{address}/tree/{target.revision}"


def _check_account(target: Target, account: Any) -> None:
    """Raise BadInput if the token of this account may not push to the target."""
    token = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    if token == "read":
        raise BadInput(f"{target}: this token may only read. Make one that may write: {TOKENS}.")
    names = [account.get("name", ""), *(group.get("name", "") for group in account.get("orgs") or ())]
    owner = target.repo.partition("/")[0]
    if owner.lower() not in [name.lower() for name in names]:
        raise BadInput(f"{target}: this account cannot write there. It can write to {', '.join(names)}.")


def _remote_files(target: Target) -> dict[str, Any]:
    """Return the files of a branch by name, as the Hub describes them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(target.repo, recursive=True, revision=target.revision)
    return {file.path: file for file in tree if isinstance(file, RepoFile) and file.path not in CREATED_BY_HUB}


def _same(path: Path, remote: Any) -> bool:
    """Return whether a file of the Hub is this one, by size and checksum: SHA-256 of a large file, else git's."""
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return bool(sha256(path) == remote.lfs.sha256)
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return bool(blob.hexdigest() == remote.blob_id)


@contextmanager
def _hub_errors(target: Target) -> Iterator[None]:
    """Raise what the Hub or the network can raise as BadInput that states what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except BadInput:
        raise
    except RepositoryNotFoundError:
        raise BadInput(f"{target}: the Hub shows no such repository to this token. Check OWNER/NAME.") from None
    except OfflineModeIsEnabled:
        raise BadInput(f"{target}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it and push again.") from None
    except HfHubHTTPError as error:
        status, message = error.response.status_code, " ".join((error.server_message or str(error)).split())[:150]
        advice = {
            401: "The token is not valid. Log in with `hf auth login`, or set HF_TOKEN.",
            403: f"This token may not write there. Make one that may: {TOKENS}.",
            429: "Wait a few minutes and push again.",
        }.get(status, "Push again later; an upload continues where it was cut off.")
        raise BadInput(f"{target}: the Hub answered {status} ({message}). {advice}") from None
    except ValueError as error:  # of the Hub's client, such as for a card that the Hub does not accept
        raise BadInput(f"{target}: the upload failed ({line_of(error)[:200]}). Correct that and push again.") from None
    except Exception as error:  # whatever a network can raise
        raise BadInput(
            f"{target}: the Hub cannot be reached ({type(error).__name__}). "
            "Go online and push again; an upload continues where it was cut off."
        ) from None
