"""What is seen of models and disks on a host, by a real shell; and what the hub is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from raycluster.apply.look_ahead import RAY_PART, _added, _archived, _folder, _placed, reads
from raycluster.core.interfaces import ROOT, PrepareForecast, Secret
from raycluster.hosts.fleet import Connected
from raycluster.hosts.runtimes.docker import DockerRuntime
from raycluster.hosts.transports.local import LocalTransport
from raycluster.observe.model_hub import read_hub
from raycluster.serve.model_refs import ModelRef
from raycluster.spec import ClusterSpec
from raycluster.spec.known_images import DEFAULT_IMAGE
from raycluster.state.inventory import Files
from tests.node.hub import Hub, open_hub

HERE = LocalTransport("here")
CONFIG = {"num_hidden_layers": 2, "name": "file 7 config\n"}
MODEL = ModelRef("meta/llama")


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "a model.safetensors").write_bytes(b"w" * 500)
    index = {"metadata": {"total_size": 1234}, "weight_map": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def test_a_folder_tells_its_files_config_index_and_disk(tmp_path: Path) -> None:
    write(tmp_path / "llama")
    seen = _placed(HERE, str(tmp_path / "llama"), ModelRef(str(tmp_path / "llama")))
    assert seen.files.config == CONFIG
    assert seen.files.sizes["a model.safetensors"] == 500
    assert set(seen.files.sizes) == {p.name for p in (tmp_path / "llama").iterdir()}
    assert seen.files.indexed == 1234
    assert seen.disk
    assert seen.disk.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert seen.disk.device == str(tmp_path.stat().st_dev)
    assert not seen.hidden


def test_the_hubs_cache_is_read_at_the_commit_that_a_revision_stands_for(tmp_path: Path) -> None:
    folder = tmp_path / "models--meta--llama"
    write(folder / "blobs")
    commit = folder / "snapshots" / "c0ffee"
    commit.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("c0ffee")
    (commit / "model.safetensors").symlink_to(folder / "blobs/a model.safetensors")
    assert _placed(HERE, str(folder), MODEL).files == Files({"model.safetensors": 500})
    by_commit = ModelRef("meta/llama", revision="c0ffee")
    assert _placed(HERE, str(folder), by_commit).files == Files({"model.safetensors": 500})
    other = ModelRef("meta/llama", revision="v2")
    assert _placed(HERE, str(folder), other).files == Files()


def test_what_is_not_there_has_the_disk_of_the_nearest_folder_that_is(tmp_path: Path) -> None:
    seen = _placed(HERE, f"{tmp_path}/none/$(touch {tmp_path}/x)/'; true", MODEL)
    assert seen.files == Files()
    assert seen.disk
    assert seen.disk.device == str(tmp_path.stat().st_dev)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_is_none_is_no_config(tmp_path: Path) -> None:
    for text in ("", "{", "[]"):
        (tmp_path / "config.json").write_text(text)
        assert _placed(HERE, str(tmp_path), ModelRef(str(tmp_path))).files.config is None


def test_nothing_is_known_of_what_lies_in_an_image() -> None:
    assert _placed(HERE, "", MODEL).hidden


@pytest.mark.parametrize(
    ("model", "env", "folder"),
    [
        (ModelRef("/models/a"), {}, "/models/a"),
        (MODEL, {}, f"{ROOT}/cache/huggingface/hub/models--meta--llama"),
        (MODEL, {"HF_HOME": "/hf"}, "/hf/hub/models--meta--llama"),
        (MODEL, {"HF_HOME": "/hf", "HF_HUB_CACHE": "/c"}, "/c/models--meta--llama"),
        (ModelRef("meta/llama", cache_dir="/d"), {"HF_HOME": "/hf"}, "/d/models--meta--llama"),
    ],
)
def test_where_a_model_is_looked_for(model: ModelRef, env: dict[str, str], folder: str) -> None:
    assert _folder(model, env) == folder


def test_a_models_own_tokenizer_is_read_too() -> None:
    models = [
        {"name": "a", "source": "meta/llama", "engine_args": {"tokenizer": "meta/tokens"}},
        {"name": "b", "source": "s3://bucket/b"},
    ]
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": {"host": "h"}, "models": models}
    )
    assert {name: [w.source for w in found] for name, found in reads(spec).items()} == {
        "a": ["meta/llama", "meta/tokens"],
        "b": [],
    }


def test_an_image_from_a_file_is_as_large_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "ray.tar").write_bytes(b"t" * 300)
    hosts = [
        {"host": "a", "runtime": {"image": "ray:1", "archive": str(tmp_path / "ray.tar")}},
        {"host": "b", "runtime": {"image": "ray:2", "archive": str(tmp_path / "none.tar")}},
        {"host": "c", "runtime": {"image": "ray:3"}},
    ]
    spec = ClusterSpec.model_validate(
        {"cluster": {"name": "q"}, "head": hosts[0], "workers": hosts[1:]}
    )
    assert _archived(spec) == {"ray:1": 300}


@pytest.mark.parametrize(
    ("image", "there", "added"),
    [
        (DEFAULT_IMAGE, False, [f"Ray for {DEFAULT_IMAGE}"]),
        (DEFAULT_IMAGE, True, []),
        ("rayproject/ray-llm:1", False, []),
    ],
)
def test_ray_is_counted_for_an_image_that_lacks_it(
    tmp_path: Path, image: str, there: bool, added: list[str]
) -> None:
    spec = ClusterSpec.model_validate({"cluster": {"name": "q"}, "head": {"host": "h"}})
    connected = Connected(spec.hosts[0], HERE, DockerRuntime("here", "q", HERE))
    found = _added(connected, PrepareForecast(f"image {image}", there, str(tmp_path), image))
    assert [base.what for base in found] == added
    assert all(base.disk and base.image == RAY_PART for base in found)


def test_the_hub_tells_files_and_config() -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"w" * 70_000}
    with open_hub(Hub("meta/llama", files)) as hub:
        found = read_hub(hub.url, None, [MODEL, ModelRef("meta/other")])
    sizes = {name: len(content) for name, content in files.items()}
    assert found == {MODEL: Files(sizes, CONFIG)}


def test_the_token_opens_what_is_gated() -> None:
    with open_hub(Hub("meta/llama", {"a.bin": b"1"}, token="t", status=401)) as hub:
        assert read_hub(hub.url, None, [MODEL]) == {}
        assert read_hub(hub.url, Secret("t"), [MODEL]) == {MODEL: Files({"a.bin": 1})}


def test_a_hub_that_does_not_answer_is_asked_once_and_tells_nothing() -> None:
    assert read_hub("http://127.0.0.1:9", None, [MODEL, ModelRef("meta/other")]) == {}
