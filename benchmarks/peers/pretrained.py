"""The pretrained network, put where timm finds what it once downloaded, so that the peers' code stays a user's."""

from __future__ import annotations

import os
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

NAME = "tf_efficientnet_lite0"
_REVISION = "0" * 40  # of the made-up download


def keep_weights(published: str) -> None:
    """Write `published`, the file that headstart uses, into the Hugging Face cache of HF_HOME under timm's names."""
    model = timm.create_model(NAME, pretrained=False)
    # The published file names its tensors differently but lists them in the same order.
    theirs, given = model.state_dict(), torch.load(published, weights_only=True)
    pairs = zip(theirs.items(), given.values(), strict=True)
    state = {name: value.reshape(tensor.shape).contiguous() for (name, tensor), value in pairs}
    repository = Path(os.environ["HF_HOME"], "hub", f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}")
    snapshot = repository / "snapshots" / _REVISION
    if snapshot.exists():
        return
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(_REVISION)
    snapshot.mkdir(parents=True)
    save_file(state, snapshot / "model.safetensors")
