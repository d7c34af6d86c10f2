"""The adapter of a full run on the hub; the right to write there is checked before anything is trained."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autolr.errors import AutoLRError, RunError
from autolr.finetune.card import base_name

_REFUSED = {
    401: "your token is not known there; log in anew: hf auth login",
    403: "your token may not write there; take one that may write: hf auth login",
    404: "there is no such account or organization, or you may not see it; give another --hub-model-id",
}


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload the adapter folder of a full run, its model card with it.

    The token is that of `hf auth login`, or HF_TOKEN.

    Args:
        folder: of the adapter.
        repo_id: `account/name`, or a name in your own account.
        private: whether a new repository is; one that exists keeps the visibility it has.

    Returns:
        The repository's address.

    Raises:
        RunError: the folder holds no adapter.
        AutoLRError: nobody is logged in, the hub cannot be reached, or it refuses.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise RunError(f"{folder}: holds no trained adapter; give the folder called adapter of a full run")
    return upload(folder, claim(repo_id, private=private))


def claim(repo_id: str, *, private: bool = True) -> str:
    """Make sure that a repository is there and may be written to, and return its whole name.

    Raises:
        AutoLRError: nobody is logged in, the hub cannot be reached, or it refuses.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise AutoLRError("--push-to-hub: HF_HUB_OFFLINE=1 keeps this machine off the hub; unset it")
    if not get_token():
        raise AutoLRError("--push-to-hub: nobody is logged in to the hub; log in with hf auth login, or set HF_TOKEN")
    with _reported(repo_id):
        return str(HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id)


def upload(folder: str | Path, repo_id: str) -> str:
    """Upload a folder to a repository that is there, as one commit, and return the repository's address.

    The adapter there names its base model, without the folder that it has on this machine.

    Raises:
        AutoLRError: the hub cannot be reached, or it refuses.
    """
    from huggingface_hub import HfApi, constants

    with _reported(repo_id), tempfile.TemporaryDirectory() as place:
        shared = shutil.copytree(folder, Path(place) / "adapter")
        _forget_folder(shared / "adapter_config.json")
        HfApi().upload_folder(repo_id=repo_id, folder_path=shared, commit_message="Adapter trained by AutoLR")
    return f"{constants.ENDPOINT}/{repo_id}"


def _forget_folder(config: Path) -> None:
    """Write the base model's name alone where an adapter's configuration has its folder on this machine."""
    content = json.loads(config.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base_name(str(content.get("base_model_name_or_path")))
    config.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


@contextmanager
def _reported(repo_id: str) -> Iterator[None]:
    """Raise in one line what the hub answers."""
    from huggingface_hub.errors import HfHubHTTPError

    errors: tuple[Any, ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)  # those of its HTTP library as well
    try:
        yield
    except errors as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        answer = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = _REFUSED.get(status or 0, f"{answer}; give the same command again when that is mended")
        raise AutoLRError(f"--push-to-hub {repo_id}: {reason}") from None
