"""What is found out about a model of the hub before a machine is rented for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from remote_trainer.config import Settings
from remote_trainer.errors import ConfigError, HubUnreachable, ModelRefused, UsageError
from remote_trainer.hub import client
from remote_trainer.hub.client import Hub
from remote_trainer.hub.files import fetched_files, lacking_weights
from remote_trainer.hub.look import check, pin
from remote_trainer.hub.names import split_name
from remote_trainer.model import HubModel, Plan
from remote_trainer.redact import hide, redact
from remote_trainer.service.app import App
from remote_trainer.service.doctor import examine_hub
from remote_trainer.service.models import with_disk
from remote_trainer.service.offers import rank_offers
from remote_trainer.service.submit import Draft, Order, draft
from tests.support import hub as hubs
from tests.support.hub import FakeHub

TOKEN, OTHER, FORGED = "hf_grete_0123456789", "hf_hans_0123456789", "hf_nobody_0123456789"
FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def sdxl(*, half: bool = True, pipeline: str = "StableDiffusionXLPipeline", mark: bytes = b"") -> dict[str, bytes]:
    """The files of a small SDXL, as the hub has them."""
    files = {"model_index.json": json.dumps({"_class_name": pipeline}).encode(), "README.md": b"x" * 999}
    files |= {"sd_xl_base.safetensors": b"x" * 5000, "scheduler/scheduler_config.json": b"{}", "unet/model.onnx": b"x" * 5000}
    for folder, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"),
                         ("text_encoder_2", "model")):  # fmt: skip
        files |= {
            f"{folder}/config.json": b"{}",
            f"{folder}/{name}.safetensors": b"x" * 2000 + mark,
            f"{folder}/{name}.bin": b"x" * 2000,
        }
        files |= {f"{folder}/{name}.fp16.safetensors": b"x" * 1000 + mark} if half else {}
    return files | {f"{folder}/vocab.json": b"{}" for folder in ("tokenizer", "tokenizer_2")}


SMALL = 4 * 1002 + 2 + 2 + 2 + len(sdxl()["model_index.json"])  # what is fetched of it


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with an open model, a gated and a private one, that Grete may have; the product may ask it."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with hubs.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.tokens = {TOKEN: "grete", OTHER: "hans"}
        hub.models = {
            "acme/open": hubs.HubModel([sdxl(mark=b"old"), sdxl()]),
            "acme/gated": hubs.HubModel([sdxl()], gated=True, readers={"grete"}),
            "acme/hidden": hubs.HubModel([sdxl()], private=True, readers={"grete"}),
            "acme/sd15": hubs.HubModel([sdxl(pipeline="StableDiffusionPipeline")]),
            "acme/files": hubs.HubModel([{"model.safetensors": b"x"}]),
            "acme/pickled": hubs.HubModel(
                [{n: data for n, data in sdxl().items() if not n.startswith("unet/diff") or ".bin" in n}]
            ),
        }
        yield hub


def look(hub: FakeHub, name: str, token: str | None = None, revision: str = "") -> HubModel:
    """Look a model up as a worker with that token does."""
    model = HubModel(input="base", name=name, revision=revision, folders=FOLDERS, pipelines=("*XL*",), endpoint=hub.url)

    async def ask() -> HubModel:
        async with Hub(hub.url, token) as asked:
            found = await pin(asked, model)
            await check(asked, found)
            return found

    return asyncio.run(ask())


def order(base: str) -> Order:
    return Order(tool="sdxl-lora@1", base=base, dataset=str(Path("tests/fixtures/muybridge-cat").absolute()), settings=["gpus=0"])


def drafted(tmp_path: Path, base: str, **settings: str) -> Draft:
    """An order as it would be submitted."""
    places = {name: tmp_path / name for name in ("data_dir", "state_dir", "cache_dir", "secrets_dir")}
    return asyncio.run(draft(Settings(**places, **settings), order(base)))


def test_a_model_is_known_by_its_commit_and_by_what_is_fetched_of_it(hub: FakeHub) -> None:
    """A branch or nothing becomes the newest commit, a commit stays; the size is that of one set of weights, in half precision."""
    found = look(hub, "acme/open")
    assert (found.revision, found.size) == (hub.head("acme/open"), SMALL)
    first = hubs.commit_of(sdxl(mark=b"old"))
    assert look(hub, "acme/open", revision=first).revision == first


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("acme/nothing", None, "has no model acme/nothing, or it is private and needs a HF_TOKEN"),
        ("acme/nothing", TOKEN, "has no model acme/nothing, or grete, whose HF_TOKEN this is, may not see it"),
        ("acme/hidden", OTHER, "hans, whose HF_TOKEN this is, may not see it"),
        ("acme/gated", None, "acme/gated is gated and there is no HF_TOKEN: accept its licence at {url}/acme/gated"),
        ("acme/gated", OTHER, "gated and hans, whose HF_TOKEN this is, may not read it: accept its licence at {url}/acme/gated"),
        ("acme/gated", FORGED, "HF_TOKEN is not valid, the hub does not know it: make a new one at {url}/settings/tokens"),
        ("acme/open", FORGED, "HF_TOKEN is not valid"),
        ("acme/sd15", None, "acme/sd15 is a StableDiffusionPipeline; the tool trains *XL*"),
        ("acme/files", None, "has no model_index.json"),
        ("acme/pickled", None, "has no .safetensors weights in unet"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_with_who_has_to_do_what(
    hub: FakeHub, name: str, token: str | None, words: str
) -> None:
    """The name, the licence with its address, the token, or the kind of model; never the token itself."""
    with pytest.raises(ModelRefused) as caught:
        look(hub, name, token)
    assert words.format(url=hub.url) in str(caught.value) and "hf_" not in str(caught.value)
    assert caught.value.tokenless == (name in ("acme/gated", "acme/nothing") and token is None)
    assert caught.value.closed == (name not in ("acme/sd15", "acme/files", "acme/pickled"))


def test_what_a_token_opens_is_found(hub: FakeHub) -> None:
    """A licence that was accepted opens a gated model, its owner sees a private one; a revision that is none is told."""
    assert [look(hub, name, TOKEN).size for name in ("acme/gated", "acme/hidden")] == [SMALL, SMALL]
    with pytest.raises(ModelRefused, match="no revision v9 of acme/open"):
        look(hub, "acme/open", revision="v9")


def test_a_hub_in_trouble_says_nothing_about_a_model(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked a few times; then the failure is its own, and may pass. So is an answer that is no hub's, or has no end."""
    hub.down = True
    with pytest.raises(HubUnreachable, match="out of order \\(status 503\\)") as caught:
        look(hub, "acme/open")
    assert caught.value.transient and len(hub.asked) == 3
    hub.down = False
    monkeypatch.setattr(client, "_BODY_MAX", 100)
    with pytest.raises(HubUnreachable, match="answers without end"):
        look(hub, "acme/open")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (407, b"<html>please log in</html>", "is no model hub: status 407 without a reason"),
        (404, b'{"error": {"code": 1}}', "is no model hub: status 404 without a reason"),
        (418, b'{"error": "I am a teapot"}', "does not answer for acme/open (status 418) (the hub says: I am a teapot)"),
        (200, b"[]", "something else than a listing"),
        (200, b"null", "something else than a listing"),
        (200, b"[" * 100_000, "no JSON"),
        (200, b'{"sha": "../../etc", "siblings": []}', "something else than a listing"),
    ],
)
def test_what_no_hub_would_say_is_no_word_about_the_model(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, words: str
) -> None:
    """A proxy's page, an answer of another form, a status that may pass: the hub was not reached, and the message has the status."""
    monkeypatch.setattr(client, "_TRIES", 1)
    hub.says = (status, body)
    with pytest.raises(HubUnreachable) as caught:
        look(hub, "acme/open")
    assert words in str(caught.value)


def test_of_an_answer_only_what_can_be_true_is_believed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that no file has count for nothing, names of files are text, that of an account is short; an address must be one."""
    monkeypatch.setattr(client, "_TRIES", 1)

    async def ask(url: str, what: str) -> object:
        async with Hub(url, TOKEN) as asked:
            return await (asked.whoami() if what == "whoami" else asked.listing("acme/open"))

    sizes = {"a": 7, "b": -1, "c": 2**50 + 1, "d": True, "e": 1.5, "f": None}
    rows = [{"rfilename": name, "size": size} for name, size in sizes.items()]
    hub.says = (200, json.dumps({"sha": "a" * 40, "siblings": [*rows, {"rfilename": 5}, 5]}).encode())
    assert asyncio.run(ask(hub.url, "listing")) == client.Listing(commit="a" * 40, files={**dict.fromkeys(sizes, 0), "a": 7})
    hub.says = (200, json.dumps({"name": "grete\x1b" * 99}).encode())
    assert len(str(asyncio.run(ask(hub.url, "whoami")))) <= 100
    hub.says = (200, b"[]")
    for url, words in ((hub.url, "does not say whose token"), ("http://127.0.0.1:x", "cannot be reached")):
        with pytest.raises(HubUnreachable, match=words):
            asyncio.run(ask(url, "whoami"))


def test_a_question_takes_no_longer_than_it_may(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all its tries, however slowly the hub speaks."""
    monkeypatch.setattr(client, "_WITHIN_S", 0.05)
    hub.silent = threading.Event()
    try:
        with pytest.raises(HubUnreachable, match=r"has not answered within 0\.05 s"):
            look(hub, "acme/open")
    finally:
        hub.silent.set()


@pytest.mark.parametrize("token", ["hf_grün_0123456789", "hf_otto_0123456789\nX-Other: 1", "hf_otto 0123456789"])
def test_a_token_that_no_header_can_carry_is_refused(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Before anything is asked, without its value; doctor says so, too."""
    with pytest.raises(ConfigError, match="no token has") as caught:
        look(hub, "acme/open", token)
    assert "hf_" not in str(caught.value) and hub.asked == []
    monkeypatch.setenv("HF_TOKEN", token)
    assert asyncio.run(examine_hub(Settings(secrets_dir=tmp_path))).ok is False


def test_a_hub_may_repeat_a_token_and_nobody_reads_it(hub: FakeHub) -> None:
    """What the hub says goes into messages without any secret of ours."""
    hide(TOKEN)
    hub.models[f"acme/{TOKEN}"] = hubs.HubModel([sdxl()], gated=True)
    with pytest.raises(ModelRefused) as caught:
        look(hub, "acme/gated", OTHER, revision=TOKEN)
    assert "Invalid rev id: ***" in str(caught.value)
    assert hub.seen == {f"Bearer {OTHER}"}
    assert redact(f"a token that nobody has read: hf_{'aB3' * 11}x") == "a token that nobody has read: ***"


@pytest.mark.parametrize(
    ("value", "name"),
    [("acme/a.b-c_d", ("acme/a.b-c_d", "")), ("acme/a@v1.0", ("acme/a", "v1.0")), ("acme/a@refs/pr/1", ("acme/a", "refs/pr/1")),
     ("acme", None), ("a/b/c", None), ("./a", None), ("/a/b", None), ("acme/a@", None), ("acme/a b", None), ("../a", None)],
)  # fmt: skip
def test_names_of_models(value: str, name: tuple[str, str] | None) -> None:
    """owner/model, with @ and a branch, tag or commit if need be; anything else is a path."""
    assert split_name(value) == name


def test_one_set_of_weights_is_fetched() -> None:
    """In half precision if the net has it, also in shards; else whole; never pickles, other variants or files outside the folders."""
    half, whole = fetched_files(sdxl(), FOLDERS), fetched_files(sdxl(half=False), FOLDERS)
    assert [name for name in half if "unet" in name] == ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert [name for name in whole if "unet" in name] == ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert len(half) == len(whole) == 12
    mixed = ["unet/a.safetensors", "unet/a.non_ema.safetensors", "unet/a.fp16-00001-of-00002.safetensors", "vae/b.safetensors"]
    assert fetched_files(mixed, ("unet", "vae")) == ["unet/a.fp16-00001-of-00002.safetensors", "vae/b.safetensors"]
    assert lacking_weights(["unet/a.bin", "vae/b.safetensors", "tokenizer/vocab.json"], ("unet", "vae", "tokenizer", "x")) == [
        "unet",
        "x",
    ]


def test_an_order_names_its_model_by_commit(hub: FakeHub, tmp_path: Path) -> None:
    """The plan holds the commit and the size, and another commit makes another plan."""
    first = drafted(tmp_path, "acme/open")
    [model] = first.plan.models
    assert (str(model), model.size) == (f"acme/open@{hub.head('acme/open')}", SMALL) and first.notes == ()
    hub.models["acme/open"].commits.append(sdxl(mark=b"new"))
    assert drafted(tmp_path, "acme/open").plan.digest != first.plan.digest


def test_an_order_for_a_model_that_is_not_there_is_refused(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is packed; a name that could be neither path nor model is refused without asking."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ModelRefused, match="no model acme/nothing"):
        drafted(tmp_path, "acme/nothing")
    hub.asked.clear()
    with pytest.raises(UsageError, match="base=photos names nothing on this machine, and is no model of the hub"):
        drafted(tmp_path, "photos")
    assert hub.asked == []


@pytest.mark.parametrize("url", ["ftp://hub", "box", "http://me:pass1@hub", "http://hub/{x}", "http://hub/ x", "http://hub\n"])
def test_an_address_that_is_none_of_a_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Also that of the environment, without its value."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(ConfigError, match="HF_ENDPOINT is no URL of a model hub") as caught:
        drafted(tmp_path, "acme/open")
    assert url not in str(caught.value)
    with pytest.raises(ValidationError):
        Settings(hub_endpoint=url)


def test_where_a_service_drives_its_token_counts(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours may be of another account, or old: what another may open is told; what no token opens is refused."""
    service = {"store": "mongodb://127.0.0.1/x"}
    for token, name in ((OTHER, "acme/gated"), (OTHER, "acme/hidden"), (FORGED, "acme/open")):
        monkeypatch.setenv("HF_TOKEN", token)
        [note] = drafted(tmp_path, name, **service).notes
        assert "Unless the worker or the machine has a token for it" in note
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ModelRefused, match="model_index"):
        drafted(tmp_path, "acme/files", **service)


def test_what_cannot_be_found_out_at_submit_is_told_and_no_reason_to_refuse(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that is down, a gated model where a borrowed machine may have a token of its own, a path of that machine."""
    checked = drafted(tmp_path, "acme/gated")
    [note] = checked.notes
    assert checked.plan.models[0].revision == hub.head("acme/gated")
    assert "there is no HF_TOKEN" in note and "Unless the worker or the machine has a token for it" in note
    [note] = drafted(tmp_path, "acme/hidden").notes
    assert "it is private and needs a HF_TOKEN" in note
    [note] = drafted(tmp_path, "/models/sdxl").notes
    assert note == "base=/models/sdxl is not on this machine: the machine that trains must have it"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checked = drafted(tmp_path, "acme/open@v1")
    assert (
        checked.notes == ("acme/open@v1 was not looked up: HF_HUB_OFFLINE is set",)
        and str(checked.plan.models[0]) == "acme/open@v1"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.down = True
    [note] = drafted(tmp_path, "acme/open", hub_endpoint=hub.url).notes
    assert "acme/open was not looked up: the model hub" in note and "the machine that trains may reach the hub" in note


def test_a_model_in_a_cache_of_the_hub_is_shipped_as_a_folder(hub: FakeHub, tmp_path: Path) -> None:
    """Such a folder is made of links that leave it; nobody is asked about it."""
    folder = tmp_path / "models--acme--m" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    (tmp_path / "models--acme--m" / "blob").write_bytes(b"{}")
    (folder / "model_index.json").symlink_to("../../blob")
    checked = drafted(tmp_path, str(folder))
    assert checked.sources["base"] == str(folder) and checked.plan.models == () and hub.asked == []


def test_disk_is_asked_for_by_the_size_of_everything() -> None:
    """Inputs, models and what the steps write, in whole GB; a plan that asks for as much already stays."""
    model = HubModel(input="base", name="a/b", folders=("unet",), size=33_700_000_000)
    plan = Plan(tool="t@1", parameters={}, steps=(), writes_gb=25, models=(model,))
    fitted = with_disk(plan, {"dataset": 2_000_000_000})
    assert fitted.plan.resources.disk_gb == 61
    assert fitted.notes == (
        "the machine needs 61 GB of disk, rather than 0: base 33.7 GB, dataset 2.0 GB, 25 GB for what the steps write",
    )
    assert with_disk(fitted.plan, {"dataset": 2_000_000_000}).notes == ()
    assert with_disk(Plan(tool="t@1", parameters={}, steps=()), {"dataset": 10**12}).plan.resources.disk_gb == 0


def test_offers_have_room_for_what_is_shipped(tmp_path: Path) -> None:
    """They are ranked as the job would be rented for: with a disk for its inputs and what its steps write."""
    base = tmp_path / "base.safetensors"
    with base.open("wb") as file:
        file.truncate(30 * 10**9)  # takes no room

    async def rank() -> Plan:
        places = {name: tmp_path / name for name in ("data_dir", "state_dir", "cache_dir", "secrets_dir")}
        async with App(Settings(**places)) as app:
            return (await rank_offers(app, Order(tool="sd15-lora@1", base=str(base)))).plan

    plan = asyncio.run(rank())
    assert plan.resources.disk_gb == 31 + plan.writes_gb


@pytest.mark.parametrize(
    ("token", "ok", "words"),
    [
        (None, None, "no HF_TOKEN: models that ask for one cannot be had; write it to "),
        (TOKEN, True, "HF_TOKEN is that of grete at http"),
        (FORGED, False, "HF_TOKEN is not valid"),
    ],
)
def test_doctor_says_whose_token_it_is(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, ok: bool | None, words: str
) -> None:
    """And never what it is; a hub that does not answer is no fault of this installation."""
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    settings = Settings(secrets_dir=tmp_path)
    found = asyncio.run(examine_hub(settings))
    assert (found.question, found.ok) == ("model hub", ok)
    assert found.answer.startswith(words) and "hf_" not in found.answer
    if token == TOKEN:
        hub.down = True
        found = asyncio.run(examine_hub(settings))
        assert found.ok is None and "HF_TOKEN is set" in found.answer and "hf_" not in found.answer
        hub.says = (403, b'{"error": "this address is blocked"}')
        found = asyncio.run(examine_hub(settings))
        assert found.ok is None and "this address is blocked" in found.answer
