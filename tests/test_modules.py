"""What ``modules.alias`` says of VFIO, whom it suits, and which drivers a module gave."""

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.errors import HostError
from kata_gpu.host import modules
from kata_gpu.host.commands import run
from kata_gpu.host.sysfs import Sysfs
from kata_gpu.model import vfio
from kata_gpu.model.vfio import VFIO_PCI, Ids, VfioAlias
from tests.kernel import nodes

RELEASE: Final = "6.12.0"
ANYTHING: Final = "v*d*sv*sd*bc*sc*i*"
GRACE: Final = "v000010DEd00002342sv*sd*bc*sc*i*"
GH200: Final[Ids] = (0x10DE, 0x2342, 0x10DE, 0x16EB, 3, 2, 0)
WIDTHS: Final = (8, 8, 8, 8, 2, 2, 2)
KEYS: Final = ("v", "d", "sv", "sd", "bc", "sc", "i")


def read(root: Path, text: str | bytes) -> tuple[VfioAlias, ...]:
    """Return the aliases of a kernel whose ``modules.alias`` has that text."""
    file = root / "lib/modules" / RELEASE / "modules.alias"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return modules.vfio_aliases(root, RELEASE)


def best(root: Path, *lines: str, wanted: Ids = GH200) -> str:
    """Return the module that suits a function by these lines."""
    return vfio.best_module(read(root, "".join(f"alias {line}\n" for line in lines)), wanted)


# The file


def test_only_lines_about_vfio_count(tmp_path: Path) -> None:
    text = (
        "# Aliases extracted from modules themselves.\n"
        "alias pci:v000010DEd*sv*sd*bc03sc00i00* nouveau\n"
        f"alias vfio_pci:{ANYTHING} vfio_pci\n"
        f"alias vfio_pci:{GRACE} nvgrace_gpu_vfio_pci\n"
        "alias vfio-pci vfio_pci\n"
    )
    grace = (0x10DE, 0x2342, None, None, None, None, None)
    assert read(tmp_path, text) == (
        VfioAlias(module="vfio_pci", ids=(None,) * 7),
        VfioAlias(module="nvgrace_gpu_vfio_pci", ids=grace),
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"#alias vfio_pci:{GRACE} module",
        f" alias vfio_pci:{GRACE} module",
        f"alias vfio_pci:{GRACE}",
        f"alias vfio_pci:{GRACE} ",
        f"alias vfio_pci:{GRACE} ../module",
        f"alias vfio_pci:{GRACE} -r",
        f"alias vfio_pci:{GRACE} two modules",
        f"alias vfio_pci:{GRACE} {'m' * 65}",
        f"alias vfio_pci:{GRACE} mod\x1bule",
        f"alias vfio_pci:{GRACE} module\r",
        f"alias vfio_pci:{GRACE.lower()} module",
        "alias vfio_pci:v000010DE* module",
        "alias vfio_pci:v000010DEd0000234[25]sv*sd*bc*sc*i* module",
        "alias vfio_pci:v-00010DEd00002342sv*sd*bc*sc*i* module",
        "alias vfio_pci:v00001０DEd00002342sv*sd*bc*sc*i* module",  # noqa: RUF001 - meant
    ],
)
def test_a_line_that_depmod_would_not_write_says_nothing(line: str, tmp_path: Path) -> None:
    text = f"{line}\nalias vfio_pci:{GRACE} after"
    assert [alias.module for alias in read(tmp_path, text)] == ["after"]


def test_a_module_is_called_as_the_kernel_calls_it(tmp_path: Path) -> None:
    assert best(tmp_path, f"vfio_pci:{GRACE} nvgrace-gpu-vfio-pci") == "nvgrace_gpu_vfio_pci"


def test_a_host_without_modules_has_no_aliases(tmp_path: Path) -> None:
    assert modules.vfio_aliases(tmp_path, RELEASE) == ()


@pytest.mark.parametrize("content", [b"alias \xff\n", b"a" * ((16 << 20) + 1)])
def test_what_is_no_such_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot read .*modules\.alias: "):
        read(tmp_path, content)


@pytest.mark.parametrize("release", ["../../etc", "..", ".", "a/b"])
def test_a_release_leads_nowhere_else(release: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot read the modules of kernel"):
        modules.vfio_aliases(tmp_path, release)


# The choice


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), VFIO_PCI),
        ((f"vfio_pci:{ANYTHING} vfio_pci",), VFIO_PCI),
        ((f"vfio_pci:{ANYTHING} takes_all",), VFIO_PCI),
        ((f"vfio_pci:{ANYTHING} vfio_pci", f"vfio_pci:{GRACE} grace"), "grace"),
        ((f"vfio_pci:{GRACE} grace", f"vfio_pci:{ANYTHING} vfio_pci"), "grace"),
        (("vfio_pci:v000010DEd00002345sv*sd*bc*sc*i* grace",), VFIO_PCI),
        (
            (f"vfio_pci:{GRACE} by_device", "vfio_pci:v000010DEd00002342sv*sd*bc03sc02i* by_class"),
            "by_class",
        ),
        (("vfio_pci:v000010DEd*sv*sd*bc*sc*i* loose", f"vfio_pci:{GRACE} exact"), "exact"),
        ((f"vfio_pci:{GRACE} second", f"vfio_pci:{GRACE} first"), "first"),
        ((f"vfio_pci:{GRACE} first", f"vfio_pci:{GRACE} second"), "first"),
    ],
)
def test_the_module_made_most_exactly_for_it_is_the_best(
    lines: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert best(tmp_path, *lines) == expected


IDS = st.tuples(
    *(st.sampled_from((0x10DE, 0x15B3, 0xFFFF)) for _ in range(4)),
    *(st.sampled_from((0x00, 0x03, 0xFF)) for _ in range(3)),
)
PATTERNS = IDS.flatmap(lambda ids: st.tuples(*(st.sampled_from((None, number)) for number in ids)))


def modalias(ids: tuple[int | None, ...]) -> str:
    """Return ids as Linux writes them into ``modalias`` and ``modules.alias``."""
    texts = ("*" if n is None else f"{n:0{w}X}" for n, w in zip(ids, WIDTHS, strict=True))
    return "vfio_pci:" + "".join(f"{key}{text}" for key, text in zip(KEYS, texts, strict=True))


@settings(deadline=None)
@given(patterns=st.lists(PATTERNS, max_size=8), wanted=IDS)
def test_it_is_the_choice_of_who_matches_the_text(
    patterns: list[tuple[int | None, ...]], wanted: Ids, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As modprobe would: by file name patterns, over the lines as they stand."""
    lines = [(modalias(pattern), f"module_{number}") for number, pattern in enumerate(patterns)]
    text = "".join(f"alias {pattern} {module}\n" for pattern, module in lines)
    aliases = read(tmp_path_factory.getbasetemp(), text)
    matching = [line for line in lines if fnmatchcase(modalias(wanted), line[0])]
    assert [a.module for a in aliases if a.matches(wanted)] == [module for _, module in matching]
    fewest = min((pattern.count("*") for pattern, _ in matching), default=7)
    expected = {module for pattern, module in matching if pattern.count("*") == fewest}
    assert vfio.best_module(aliases, wanted) in (expected if fewest < 7 else {VFIO_PCI})


@settings(deadline=None)
@given(text=st.text(st.sampled_from("alis vfo_pc:d0123DEsb*\n#"), max_size=300))
def test_whatever_the_file_says_modules_have_the_names_of_modules(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for alias in read(tmp_path_factory.getbasetemp(), f"{text}\nalias vfio_pci:{ANYTHING} m{text}"):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}", alias.module)


# The drivers


@pytest.mark.parametrize("module", ["nvgrace_gpu_vfio_pci", "nvgrace-gpu-vfio-pci"])
def test_a_modules_driver_has_a_name_of_its_own(module: str, tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path)
    assert modules.pci_drivers(kernel, module) == ("nvgrace-gpu-vfio-pci",)


def test_a_module_may_have_several_drivers(tmp_path: Path) -> None:
    kernel = nodes.bare(tmp_path)
    assert modules.pci_drivers(kernel, "nvidia") == ("nvidia", "nvidia-nvswitch")


def test_a_module_that_is_not_loaded_has_none(tmp_path: Path) -> None:
    kernel = nodes.grace(tmp_path, loaded=False)
    assert modules.pci_drivers(kernel, "nvgrace_gpu_vfio_pci") == ()


def test_drivers_of_another_bus_and_names_that_are_none_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "module/odd/drivers"
    folder.mkdir(parents=True)
    for name in ("platform:odd", "pci:", "pci:.odd", "pci:o dd", f"pci:{'d' * 65}", "pci:\x1b[31m"):
        (folder / name).touch()
    assert modules.pci_drivers(Sysfs(tmp_path), "odd") == ()


@pytest.mark.lab
def test_the_choice_is_kmods_for_every_function_of_a_real_host() -> None:
    sysfs = Sysfs()
    aliases = modules.vfio_aliases(Path("/"), os.uname().release)
    assert aliases
    names = sysfs.names("bus/pci/devices")
    assert names
    for name in names:
        text = sysfs.read(f"bus/pci/devices/{name}/modalias").removeprefix("pci:")
        resolved = _resolve(f"vfio_pci:{text}")
        chosen = vfio.best_module(aliases, _ids(text))
        assert [chosen.replace("-", "_")] == resolved
        assert {a.module for a in aliases if a.matches(_ids(text))} == set(resolved)


@pytest.mark.lab
def test_the_module_of_vfio_pci_has_its_driver_on_a_real_host() -> None:
    modules.load(run, VFIO_PCI)
    assert modules.pci_drivers(Sysfs(), VFIO_PCI) == (VFIO_PCI,)
    assert Sysfs().link(f"bus/pci/drivers/{VFIO_PCI}/module") == "vfio_pci"


def _resolve(alias: str) -> list[str]:
    """Return what modprobe would load for an alias."""
    return run(("modprobe", "--resolve-alias", alias), timeout_s=30).split()


def _ids(text: str) -> Ids:
    """Return the ids of a ``modalias`` without its bus."""
    found = re.fullmatch("".join(f"{key}([0-9A-F]+)" for key in KEYS), text)
    assert found is not None
    vendor, device, subvendor, subdevice, base, sub, interface = (
        int(number, 16) for number in found.groups()
    )
    return vendor, device, subvendor, subdevice, base, sub, interface
