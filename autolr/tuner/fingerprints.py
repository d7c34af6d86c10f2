"""What a search was begun with: it resumes with the same data, model and tokens, or not at all."""

from __future__ import annotations

import hashlib
import json

from pydantic import ValidationError

from autolr.data import cache
from autolr.errors import RunError
from autolr.rundir.folder import RunFolder
from autolr.schema import yaml_io
from autolr.schema.study import Study
from autolr.schema.yaml_io import Document
from autolr.tuner.setting import Setting


class Fingerprints(Document):
    """What decides every loss of a search beside its study.

    Attributes:
        data: sha256 over texts, labels, names of classes and named splits.
        weights: sha256 over the frozen weights.
        tokenizer: sha256 over what it makes tokens with.
        tokenization: sha256 over tokens and labels of the three splits.
    """

    data: str
    weights: str
    tokenizer: str
    tokenization: str

    @classmethod
    def of(cls, setting: Setting) -> Fingerprints:
        """Return those of what has been read."""
        examples = setting.examples
        about = json.dumps([examples.fingerprint, examples.classes, examples.parts])
        return cls(
            data=hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest(),
            weights=setting.backbone.fingerprint(),
            tokenizer=cache.tokenizer_fingerprint(setting.backbone.tokenizer),
            tokenization=setting.data.fingerprint(),
        )


def check(now: Fingerprints, study: Study, folder: RunFolder) -> str | None:
    """Check that a search resumes with what it was begun with; one that begins writes it down.

    The lock of the run folder's workers must be held.

    Args:
        now: what has been read.
        study: names it.
        folder: the run folder.

    Returns:
        A note; None if there is nothing to say.

    Raises:
        RunError: something has changed; the message names it.
    """
    if not folder.fingerprints.is_file():
        yaml_io.write_text(folder.fingerprints, json.dumps(now.model_dump(), indent=1) + "\n")
        is_new = not (folder.curves.is_file() or folder.recipe.is_file())
        return None if is_new else "the search kept no fingerprints so far: its data and model are taken as unchanged"
    try:
        before = Fingerprints.model_validate_json(folder.fingerprints.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        raise RunError(
            f"{folder.fingerprints}: is damaged. Remove it if data and model are those the search began with"
        ) from None
    changed = {
        f"data ({study.data.source})": before.data != now.data,
        f"model weights ({study.model})": before.weights != now.weights,
        f"tokenizer ({study.model})": before.tokenizer != now.tokenizer,
    }
    names = [name for name, has_changed in changed.items() if has_changed]
    if before.tokenization != now.tokenization and before.data == now.data and before.tokenizer == now.tokenizer:
        names.append("tokenization (the tokens of the splits; another version of AutoLR or transformers)")
    if names:
        raise RunError(
            f"--out {folder.path}: this search was begun with other {' and other '.join(names)}. Restore what has "
            "changed, or choose another --out"
        )
    return None
