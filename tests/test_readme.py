"""The README says what is so: names, keys, verbs and places are those of the code."""

import argparse
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from kata_gpu import __version__
from kata_gpu.cli import parser
from kata_gpu.cli.exit_code import ExitCode
from kata_gpu.model.confidential import ARCHITECTURES, CcMode
from kata_gpu.model.platform import Tee
from kata_gpu.observe import metrics
from kata_gpu.plan.kubernetes import labels
from kata_gpu.publish.kubernetes import events
from kata_gpu.settings import agent_file, blueprint, wiring
from kata_gpu.settings.toml_file import Table
from tests import kustomize, objects
from tests.test_devices import KNOWN, one
from tests.test_metrics import MEASURES

README: Final = (objects.ROOT / "README.md").read_text()
CONSOLE: Final = re.compile(r"```console\n(.*?)```", re.DOTALL)
COMMON: Final = {"-h", "--help", "-v", "--verbose", "--root", "--settings"}


def section(heading: str) -> str:
    """Return what is below a heading, as far as the next of any level."""
    before, _, after = README.partition(f"# {heading}\n")
    assert before.endswith("#")
    assert after
    return re.split(r"^#+ ", after, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> Iterator[str]:
    """Yield each word that a table's rows begin with."""
    for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
        yield from re.findall(r"`(.+?)`", cell)


# Words and places


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert anchor in anchors if not path else (objects.ROOT / path).exists(), target


def test_every_script_that_is_named_is_there() -> None:
    for path in re.findall(r"\b((?:scripts|configs|tests)/[\w./-]+\w)", README):
        assert (objects.ROOT / path).exists(), path


def test_the_version_is_this_one() -> None:
    said = re.findall(r"kata-gpu:(\d+\.\d+\.\d+)|newTag: ([\d.]+\d)|agent (\d+\.\d+\.\d+)", README)
    assert {"".join(groups) for groups in said} == {__version__}


def test_every_dependency_is_accounted_for() -> None:
    project = tomllib.loads((objects.ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", line)[0].lower() for line in project["dependencies"]}
    assert names <= {
        name.lower() for name in re.findall(r"\*\*(.+?)\*\*", section("How it is built"))
    }


# The command line


def below(found: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the verbs below one, by their names."""
    return {
        name: parser_
        for action in found._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, parser_ in action.choices.items()
    }


def leaves(found: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parser of each verb that does something."""
    verbs = below(found)
    return [leaf for verb in verbs.values() for leaf in leaves(verb)] if verbs else [found]


def options(found: argparse.ArgumentParser) -> set[str]:
    return {option for action in found._actions for option in action.option_strings}


@pytest.mark.parametrize("verb", leaves(parser.build()), ids=lambda verb: str(verb.prog))
def test_the_synopsis_has_the_options_of_every_verb(verb: argparse.ArgumentParser) -> None:
    lines = [re.sub(" +", " ", f"{line} ") for line in section("Synopsis").splitlines()]
    mine = " ".join(line for line in lines if line.startswith(f"{verb.prog} "))
    said = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", mine))
    assert mine
    assert said <= options(verb)
    for action in verb._actions:
        names = set(action.option_strings) - COMMON
        assert not names or names & said, names


def commands() -> Iterator[list[str]]:
    """Yield the words of each command of ours after a prompt, or alone in backquotes."""
    written = [line for block in CONSOLE.findall(README) for line in block.splitlines()]
    lines = [line.removeprefix("$ ") for line in written if line.startswith("$ ")]
    for line in (*lines, *re.findall(r"`(kata-gpu [^`]+)`", README)):
        for part in re.split(r"&&|\|(?!\w)|;|  #", line):
            words = part.split()
            if words[:1] == ["kata-gpu"]:
                yield words[1:]


def test_every_command_is_one() -> None:
    for words in commands():
        verb = parser.build()
        for word in words:
            verbs = below(verb)
            assert not verbs or word in verbs or word in options(verb), words
            assert not word.startswith("-") or word in options(verb), words
            verb = verbs.get(word, verb)


def test_every_exit_status_is_explained() -> None:
    numbers = re.findall(r"^\| (\d+) \|", section("Exit status"), re.MULTILINE)
    assert [int(number) for number in numbers] == list(ExitCode)


# What admins write


def keys(table: type[Table]) -> set[str]:
    return {field.alias or name for name, field in table.model_fields.items()}


@pytest.mark.parametrize(
    "table",
    [
        *(blueprint.BlueprintFile, blueprint.PoolTable, blueprint.SelectorTable),
        *(blueprint.HandlerTable, wiring.RuntimeHandlerTable, wiring.RuntimeTable),
    ],
)
def test_every_key_of_the_blueprint_is_told_and_is_in_the_example(table: type[Table]) -> None:
    example = (objects.ROOT / "configs/blueprint.toml").read_text()
    for key in keys(table):
        assert re.search(rf"\b{key}\b", section("The blueprint")), key
        assert re.search(rf"^(# )?({key} = |\[+([a-z]+\.)?{key}[.\]])", example, re.MULTILINE), key


@pytest.mark.parametrize(
    "table", [agent_file.SettingsFile, agent_file.KubernetesTable, agent_file.MetricsTable]
)
def test_every_setting_is_in_the_example(table: type[Table]) -> None:
    example = (objects.ROOT / "configs/agent.toml").read_text()
    for key in keys(table):
        assert re.search(rf"^# ({key} = |\[{key}\])", example, re.MULTILINE), key


# What others read


def test_every_metric_is_told_with_its_labels() -> None:
    said = {
        name: set(re.findall(r"`([a-z_]+)`", labels_))
        for names, labels_ in re.findall(
            r"^\| (`.*?) \| (.*?) \|", section("Metrics"), re.MULTILINE
        )
        for name in re.findall(r"`([a-z_]+)`", names)
    }
    found: dict[str, set[str]] = {}
    for family in families(metrics.render(MEASURES).decode()):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix("kata_gpu_"), set()).update(sample.labels)
    assert said == found


def test_every_label_of_the_node_is_told() -> None:
    text = section("What the API server is told")
    group = re.findall(r"`kata-gpu\.io/\{(.+?)\}`", text)
    assert [f"kata-gpu.io/{word}" for word in group[0].split(",")] == list(labels.KEYS)
    for key in (labels.CC_MODE, labels.CC_READY):
        assert key.removeprefix("nvidia.com/") in text


def test_every_event_is_told() -> None:
    text = re.findall(r"^- Events .*$", section("What the API server is told"), re.MULTILINE)
    assert set(re.findall(r"`(Unit\w+)`", text[0])) == {
        *(reason for reason, _ in events._TOLD.values()),
        "UnitAvailable",
    }


def test_every_attribute_is_told() -> None:
    table = section("Through Dynamic Resource Allocation")
    said = {name.removeprefix("resource.kubernetes.io").lstrip("/") for name in first_column(table)}
    known = one(KNOWN, iommufd=True, tees=tuple(Tee)).attributes
    assert said == {*(name.rpartition("/")[2] for name in known), "ccMode"}
    for word in (*ARCHITECTURES.values(), *CcMode):
        assert f"`{word}`" in table, word


@pytest.mark.parametrize("name", ["demo", "test", "check", "bench", "fuzz"])
def test_a_script_that_is_asked_for_help_does_nothing_else(name: str) -> None:
    script = objects.ROOT / "scripts" / name
    done = subprocess.run(
        [script, "--help"], capture_output=True, text=True, check=True, timeout=10
    )
    assert f"  scripts/{name} " in done.stdout
    assert done.stderr == ""


def test_the_overlay_that_is_shown_can_be_built(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section("On Kubernetes"), re.DOTALL)
    (tmp_path / "kata-gpu").symlink_to(objects.ROOT)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text)
    shown = (objects.KUBERNETES / "overlays/dra/blueprint.toml").read_text()
    (folder / "blueprint.toml").write_text(shown)
    found = kustomize.build(folder)
    assert objects.named(found, "ConfigMap", "kata-gpu")["data"]["blueprint.toml"] == shown
    images = {one["image"] for one in objects.pod(found)["containers"]}
    assert images == {f"registry.example.com/kata-gpu:{__version__}"}
    mounts = {m["name"] for m in objects.pod(found)["containers"][0]["volumeMounts"]}
    assert {"device-plugins", "plugins-registry"} <= mounts
