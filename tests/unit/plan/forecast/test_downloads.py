"""What hosts have to fetch, and where it finds no room."""

from __future__ import annotations

from dataclasses import replace

from raycluster.core.interfaces import Facts
from raycluster.plan.forecast.downloads import (
    absent,
    downloads,
    in_gb,
    tight,
    too_little_room,
    withheld,
)
from raycluster.serve.model_refs import ModelRef
from raycluster.state.inventory import (
    Disk,
    Files,
    HostSeen,
    Inventory,
    ModelLocation,
    RuntimeSource,
)
from tests.unit.plan.forecast.given import LLAMA, host_seen

LISTED = Files(
    {
        "config.json": 1_000,
        "model-1.safetensors": 6_000_000_000,
        "model-2.safetensors": 4_000_000_000,
        "pytorch_model.bin": 10_000_000_000,
        "README.md": 500,
    }
)
GB = 1_000_000_000
HUB = {LLAMA: LISTED}


def test_what_an_engine_reads_and_is_not_there_is_fetched() -> None:
    held = {"config.json": 1_000, "model-1.safetensors": 6_000_000_000, "README.md": 500}
    short = {**held, "model-1.safetensors": 5}
    hosts = {
        "head": host_seen(sizes=held),
        "gpu-1": host_seen(),
        "gpu-2": host_seen(sizes=short),
        "gpu-3": host_seen(sizes=dict(LISTED.sizes)),
    }
    found = downloads(Inventory(hosts, HUB), [LLAMA])
    assert [(d.host, d.size) for d in found] == [
        ("head", 4_000_000_000),
        ("gpu-1", 10_000_001_500),
        ("gpu-2", 10_000_000_000),
    ]
    assert {d.folder for d in found} == {"/hub"}


def test_without_the_hub_the_size_is_not_known_and_what_is_there_is_taken_for_whole() -> None:
    hosts = {"head": host_seen(), "gpu-1": host_seen(sizes={"config.json": 1})}
    (found,) = downloads(Inventory(hosts), [LLAMA])
    assert (found.host, found.what, found.size) == ("head", "meta/llama", None)
    assert too_little_room([found]) == ()


def test_a_disk_that_is_too_small_is_a_problem() -> None:
    hosts = {"head": host_seen(free=9_999_999_999), "gpu-1": host_seen(free=10_000_001_500)}
    (problem,) = too_little_room(downloads(Inventory(hosts, HUB), [LLAMA]))
    assert (problem.where, problem.what) == (
        "head",
        "meta/llama needs 10.0 GB, but only 10.0 GB are free in /hub",
    )
    assert problem.hint.startswith("free some space, or set HF_HOME under [runtime.env]")


def test_models_of_one_disk_are_added_up_and_those_of_two_are_not() -> None:
    other = ModelRef("meta/other")
    one = host_seen(free=15_000_000_000)
    same = replace(one, models={**one.models, other: one.models[LLAMA]})
    hub = {**HUB, other: LISTED}
    (problem,) = too_little_room(downloads(Inventory({"head": same}, hub), [LLAMA, other]))
    assert problem.what.startswith(
        "meta/llama, meta/other needs 20.0 GB, but only 15.0 GB are free"
    )
    disk = Disk(15_000_000_000, "9:1")
    apart = replace(one, models={**one.models, other: replace(one.models[LLAMA], disk=disk)})
    assert too_little_room(downloads(Inventory({"head": apart}, hub), [LLAMA, other])) == ()


def test_an_image_has_the_size_that_it_has_on_another_host_and_may_find_no_room() -> None:
    disk = Disk(8_000_000_000, "8:1")
    held = RuntimeSource("image ray:1", there=True, held_bytes=9_000_000_000)
    lacking = RuntimeSource("image ray:1", there=False, folder="/var/lib/docker", disk=disk)
    unknown = RuntimeSource("image nginx:1", there=False, folder="/var/lib/docker", disk=disk)
    hosts = {"head": host_seen(bases=(held,)), "gpu-1": host_seen(bases=(lacking, unknown))}
    found = downloads(Inventory(hosts), [])
    assert [(d.host, d.what, d.size, d.stored, d.certain) for d in found] == [
        ("gpu-1", "image ray:1", None, 9_000_000_000, False),
        ("gpu-1", "image nginx:1", None, None, False),
    ]
    assert too_little_room(found) == (), "a part of it may be there"
    (warning,) = tight(found)
    assert (
        warning.what
        == "image ray:1 needs up to 9.0 GB, but only 8.0 GB are free in /var/lib/docker"
    )


def test_an_image_that_nothing_may_bring_is_a_problem_and_no_download() -> None:
    base = RuntimeSource("image ray:1", there=False, folder="/docker", withheld=True)
    seen = Inventory({"head": host_seen(bases=(base, base)), "gpu-1": host_seen(bases=())})
    assert downloads(seen, []) == ()
    (problem,) = withheld(seen)
    assert problem.where == "head"
    assert 'image ray:1 is missing, and pull = "never"' in problem.what
    assert "docker load" in problem.hint


def test_a_registry_tells_what_a_pull_brings() -> None:
    base = RuntimeSource(
        "image ray:1", there=False, folder="/docker", image="ray:1", disk=Disk(10, "8:1")
    )
    seen = Inventory({"head": host_seen(bases=(base,))}, images={"ray:1": 4_000_000_000})
    (found,) = downloads(seen, [])
    assert (found.size, found.stored, found.room) == (4_000_000_000, None, 4_000_000_000)
    assert tight([found])[0].what.startswith(
        "image ray:1 needs up to 4.0 GB, but only 0 MB are free"
    )


def test_an_environment_with_a_lock_is_refused_on_a_full_disk() -> None:
    def base(free: int) -> RuntimeSource:
        disk = Disk(free, "8:1")
        return RuntimeSource(
            "env",
            there=False,
            folder="/home",
            disk=disk,
            download_bytes=4 * GB,
            stored_bytes=9 * GB,
        )

    for free, said in (
        (8 * GB, ["env needs 9.0 GB, but only 8.0 GB are free in /home"]),
        (9 * GB, []),
    ):
        (found,) = downloads(Inventory({"head": host_seen(bases=(base(free),))}), [])
        assert (found.size, found.stored, found.certain) == (4 * GB, 9 * GB, True)
        assert [problem.what for problem in too_little_room([found])] == said


def test_what_cannot_be_looked_at_may_be_there() -> None:
    (found,) = downloads(Inventory({"head": host_seen(hidden=True, free=1)}, HUB), [LLAMA])
    assert (found.size, found.certain) == (10_000_001_500, False)
    assert too_little_room([found]) == ()
    assert (
        tight([found])[0].what == "meta/llama needs up to 10.0 GB, but only 0 MB are free in /hub"
    )


def test_a_path_is_never_fetched_and_its_absence_is_told() -> None:
    path = ModelRef("/models/llama")

    def seen(placed: ModelLocation) -> Inventory:
        return Inventory({"head": HostSeen(Facts(), {path: placed})})

    empty = seen(ModelLocation(folder="/data/llama"))
    assert downloads(empty, [path]) == ()
    assert [(p.where, p.what) for p in absent(empty, [path])] == [
        ("head", "the model /models/llama does not exist")
    ]
    assert (
        absent(seen(ModelLocation(Files({"config.json": 1}), folder="/data/llama")), [path]) == ()
    )
    assert absent(seen(ModelLocation(hidden=True)), [path]) == (), "it may be in the image"


def test_bytes_in_words() -> None:
    assert [in_gb(n) for n in (None, 0, 269_060_552, 2_500_000_000)] == [
        *("?", "0 MB", "269 MB", "2.5 GB"),
    ]
