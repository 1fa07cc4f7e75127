"""`raycluster recipe`, as a person runs it; nvidia-smi is a double, the host this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycluster.spec import read_spec
from tests.lab import fake_nvidia as fake

SPEC = '# mine\n[cluster]\nname = "q" # a word\n\n[head]\ntransport = "local"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a spec of this machine, which has two GPUs as far as nvidia-smi tells."""
    (tmp_path / "cluster.toml").write_text(SPEC)
    card = fake.Card(values={"memory.total": "23034", "compute_cap": "8.9"}, name="NVIDIA L4")
    fake.Driver((card, fake.Card(1, card.name, card.values))).install(tmp_path / "bin")
    return tmp_path


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("raycluster")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [program, "recipe", *args],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_fits_is_ranked_and_added_with_arguments_for_it(folder: Path) -> None:
    done = run(folder, "list", "--fits", "--json")
    assert done.returncode == 0, done.stderr
    recipes = json.loads(done.stdout)["recipes"]
    fitting = [each["name"] for each in recipes if not each["fits"]["problem"]]
    assert [each["name"] for each in recipes][: len(fitting)] == fitting
    assert "mistral-small-24b" in fitting
    assert "glm-4.5-air" not in fitting
    added = run(folder, "add", "Mistral-Small-24B", "--fits")
    assert added.returncode == 0, added.stderr
    path = folder / "cluster.toml"
    text = path.read_text()
    assert text.startswith(SPEC)
    assert "# recipe mistral-small-24b, not run here; for 2 x NVIDIA L4 (22 GiB)\n" in text
    [model] = read_spec(path, {}).models
    assert model.engine_args["tensor_parallel_size"] == 2
    assert model.engine_args["quantization"] == "fp8"
    again = run(folder, "add", "mistral-small-24b")
    assert again.returncode == 2
    assert "is in the spec already" in again.stderr
    too_large = run(folder, "add", "glm-4.5-air", "--fits")
    assert too_large.returncode == 1
    assert "glm-4.5-air: fits on no host: head: its weights take" in too_large.stderr
    assert path.read_text() == text


def test_list_and_show_need_no_spec_and_tell_what_was_measured(tmp_path: Path) -> None:
    listed = run(tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    assert "not run here" in listed.stdout
    (tmp_path / "recipes.toml").write_text(
        '[[measured]]\nmodel = "openai/gpt-oss-20b"\ncluster = "q"\ndate = "2026-11-30"\n'
        'load = "concurrency 8"\nhardware = ["1 x NVIDIA L4"]\nrequests_per_second = 4.25\n'
        "engine_args = { max_model_len = 9000 }\n"
    )
    shown = run(tmp_path, "show", "openai/GPT-oss-20b")
    assert shown.returncode == 0, shown.stderr
    assert "2026-11-30: 4.2 requests/s with concurrency 8, on 1 x NVIDIA L4" in shown.stdout
    assert "weights: https://huggingface.co/openai/gpt-oss-20b/blob/main/model" in shown.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("show",), "show needs a name"),
        (("list", "phi-4"), "list takes no name"),
        (("show", "phi4"), "did you mean `phi-4`?"),
        (("show", "phi-4", "--fits"), "--fits: not with show"),
        (("add", "phi-4", "--json"), "--json: add writes a file"),
        (("record", "nowhere.json"), "nowhere.json: cannot be read"),
        (("add", "phi-4", "--spec", "nowhere.toml"), "nowhere.toml: no such file"),
    ],
)
def test_what_cannot_be_done_is_told(folder: Path, args: tuple[str, ...], said: str) -> None:
    before = sorted(folder.iterdir())
    done = run(folder, *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert sorted(folder.iterdir()) == before


def test_a_bench_of_a_cluster_that_is_not_there_is_not_recorded(folder: Path) -> None:
    level = {"label": "8", "completed": 1, "verdict": {"grade": "VALID"}}
    told = {"schema": 1, "kind": "bench", "started": 1.0, "target": {"model": "m"}}
    (folder / "summary.json").write_text(json.dumps({**told, "levels": [level]}))
    with (folder / "cluster.toml").open("a") as file:
        file.write('[[models]]\nname = "m"\n[runtime]\nkind = "native"\n')
    done = run(folder, "record", ".")
    assert (done.returncode, done.stdout) == (1, "")
    assert "m: has no replica now" in done.stderr
    assert not (folder / "recipes.toml").exists()


def test_what_was_proven_is_added_before_what_is_known(folder: Path) -> None:
    (folder / "recipes.toml").write_text(
        '[[measured]]\nmodel = "microsoft/phi-4"\ncluster = "q"\ndate = "2026-11-30"\n'
        'load = "8"\nengine_args = { max_model_len = 9000 }\n'
    )
    done = run(folder, "add", "phi-4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "# recipe phi-4, 2026-11-30: with 8, on unknown hardware\n"
        '[[models]]\nname = "microsoft/phi-4"\n\n[models.engine_args]\nmax_model_len = 9000\n'
    )
    (folder / "recipes.toml").write_text("[[measured]]\nmodel = 1\n")
    spoiled = run(folder, "list")
    assert (spoiled.returncode, spoiled.stdout) == (2, "")
    assert "recipes.toml: it cannot be read: 0.model" in spoiled.stderr
