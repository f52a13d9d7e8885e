"""Settings and blueprint, read by a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from kata_gpu.errors import HostError, InvalidBlueprint
from kata_gpu.host.apart import Apart
from kata_gpu.settings.agent import Settings
from kata_gpu.settings.files import Files
from kata_gpu.settings.reading import Reading

_CONFIGS = Path(__file__).parent.parent / "configs"
_BLUEPRINT = 'schema = 1\nversion = "{}"\n'


def _files(root: Path, *, blueprint: str = _BLUEPRINT.format("one"), settings: str = "") -> Files:
    folder = root / "etc/kata-gpu"
    folder.mkdir(parents=True)
    (folder / "blueprint.toml").write_text(blueprint)
    if settings:
        (folder / "agent.toml").write_text(settings)
    return Files(root=root)


def test_it_says_what_a_reader_in_this_process_would() -> None:
    files = Files(
        named_settings=_CONFIGS / "agent.toml", named_blueprint=_CONFIGS / "blueprint.toml"
    )
    with Reading(files) as reading:
        settings, blueprint = reading.settings(), reading.blueprint()
    assert settings == files.read_settings()
    assert blueprint == files.read_blueprint(settings)
    assert blueprint.pools


def test_without_a_settings_file_there_are_the_defaults(tmp_path: Path) -> None:
    with Reading(_files(tmp_path)) as reading:
        assert reading.settings() == Settings()
        assert reading.blueprint().version == "one"


def test_what_is_wrong_is_said_as_by_a_reader_in_this_process(tmp_path: Path) -> None:
    files = _files(tmp_path, blueprint="schema = 1\nverion = 1\n")
    with pytest.raises(InvalidBlueprint) as here:
        files.read_blueprint(Settings())
    with Reading(files) as reading:
        assert reading.settings() == Settings()
        with pytest.raises(InvalidBlueprint) as there:
            reading.blueprint()
    assert str(there.value) == str(here.value)
    assert "unknown key verion" in str(there.value)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with (
        Reading(_files(tmp_path, settings="rescan = 1\n")) as reading,
        pytest.raises(InvalidBlueprint, match="unknown key rescan"),
    ):
        reading.settings()


def test_a_blueprint_that_changed_meanwhile_is_read_again(tmp_path: Path) -> None:
    files = _files(tmp_path)
    with Reading(files) as reading:
        path = files.blueprint(reading.settings())
        path.write_text(_BLUEPRINT.format("another"))
        assert reading.blueprint().version == "another"


def test_later_it_is_read_anew_and_settings_that_broke_do_not_matter(tmp_path: Path) -> None:
    files = _files(tmp_path)
    with Reading(files) as reading:
        assert reading.blueprint().version == "one"
        files.blueprint(Settings()).write_text(_BLUEPRINT.format("two"))
        files.settings.write_text("nonsense")
        assert reading.blueprint().version == "two"


def test_a_process_that_fails_is_said_with_its_reason() -> None:
    with pytest.raises(
        HostError, match=r"(?s)cannot run no\.such\.module: exit status 1: .*No module"
    ):
        Apart("no.such.module", ()).answer()


def test_one_that_is_not_waited_for_is_ended(tmp_path: Path) -> None:
    process = Apart("kata_gpu.settings.child", (str(tmp_path), "", ""))
    process.end()
    process.end()
    with pytest.raises(HostError, match="it was ended"):
        process.answer()


def test_a_long_answer_comes_whole(tmp_path: Path) -> None:
    pools = "".join(
        f'[[pool]]\nname = "p{n}"\nmode = "host"\nselect = [{{ class = "03" }}]\n'
        for n in range(1000)
    )
    with Reading(_files(tmp_path, blueprint=_BLUEPRINT.format("long") + pools)) as reading:
        assert len(reading.blueprint().pools) == 1000


def test_the_agent_has_no_pydantic() -> None:
    code = (
        "import sys\n"
        "import kata_gpu.cli.run, kata_gpu.cli.serving, kata_gpu.agent.kubernetes\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in {'pydantic', 'kubernetes'}))"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == ""
