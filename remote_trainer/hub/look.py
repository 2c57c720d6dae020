"""Looks a model up before a machine is rented for it: is it there, may we have it, is it of the right kind, how large is it.

The file that opens the gate is fetched, rather than the hub asked whether it would be: so the answer is the one that the trainer gets.

Rules for editing: a model that no try can fetch is ModelRefused, with who has to do what; a hub that does not answer is HubUnreachable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NoReturn

from remote_trainer.errors import HubUnreachable, ModelRefused
from remote_trainer.hub.client import Hub, Listing, Refused
from remote_trainer.hub.files import INDEX, fetched_files, lacking_weights
from remote_trainer.model import HubModel

TOKEN = "HF_TOKEN"  # noqa: S105 - the name of one

_GATED = "GatedRepo"
_NO_REVISION = "RevisionNotFound"
_FINAL = (401, 403, 404)


async def pin(hub: Hub, model: HubModel) -> HubModel:
    """Return the model with the commit that its revision is now, and the size of what is fetched of it."""
    try:
        listing = await hub.listing(model.name, model.revision)
    except Refused as refused:
        await _explain(hub, model, refused)
    _check_layout(model, listing)
    size = sum(listing.files[name] for name in fetched_files(listing.files, model.folders))
    return replace(model, revision=listing.commit, size=size)


async def check(hub: Hub, model: HubModel) -> None:
    """Make sure that a pinned model's files can be had, and that it is of the right kind."""
    try:
        _check_kind(model, await hub.read(model.name, model.revision, INDEX))
    except Refused as refused:
        await _explain(hub, model, refused)


def _check_layout(model: HubModel, listing: Listing) -> None:
    if INDEX not in listing.files:
        raise ModelRefused(
            f"{model} has no {INDEX}: it is not in the layout of diffusers; give a model that is, or a file or folder of this machine"
        )
    if lacking := lacking_weights(listing.files, model.folders):
        raise ModelRefused(f"{model} has no .safetensors weights in {', '.join(lacking)}: other kinds of files are never loaded")


def _check_kind(model: HubModel, index: object) -> None:
    kind = str(index.get("_class_name", "?")) if isinstance(index, Mapping) else "?"
    if model.pipelines and not any(fnmatchcase(kind, pattern) for pattern in model.pipelines):
        raise ModelRefused(f"{model.name} is a {kind}; the tool trains {' or '.join(model.pipelines)}")


async def _explain(hub: Hub, model: HubModel, refused: Refused) -> NoReturn:
    """Say what it is that the hub refuses, and who can change that."""
    said = f" (the hub says: {refused.words})" if refused.words else ""
    if refused.status not in _FINAL:
        raise HubUnreachable(f"the hub does not answer for {model} (status {refused.status}){said}")
    owner = await _owner(hub) if hub.token else ""
    if hub.token and not owner:
        raise ModelRefused(
            f"{TOKEN} is not valid, the hub does not know it: make a new one at {hub.url}/settings/tokens{said}", closed=True
        )
    if refused.code == _NO_REVISION:
        raise ModelRefused(f"the hub has no revision {model.revision} of {model.name}{said}")
    if refused.code == _GATED:
        if not hub.token:
            raise ModelRefused(
                f"{model.name} is gated and there is no {TOKEN}: accept its licence at {hub.url}/{model.name}, then set {TOKEN} to a "
                f"token of that account{said}",
                tokenless=True,
            )
        raise ModelRefused(
            f"{model.name} is gated and {owner}, whose {TOKEN} this is, may not read it: accept its licence at {hub.url}/{model.name}, "
            f"and let the token read gated models{said}",
            closed=True,
        )
    if refused.status == 403:
        words = f"the hub refuses {model} (status 403): see {hub.url}/{model.name}{said}"
    else:
        private = f"{owner}, whose {TOKEN} this is, may not see it" if owner else f"it is private and needs a {TOKEN}"
        words = f"the hub has no model {model.name}, or {private}: check the name at {hub.url}/{model.name}{said}"
    raise ModelRefused(words, tokenless=not hub.token, closed=True)


async def _owner(hub: Hub) -> str:
    """Return whom the token belongs to; empty if it belongs to nobody."""
    try:
        return await hub.whoami()
    except Refused as refused:
        return "" if refused.status == 401 else "the account"
    except HubUnreachable:
        return "the account"
