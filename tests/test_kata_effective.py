"""What counts is what the runtimes make of it, whoever wrote it and however."""

import json
import tomllib
from typing import Any, Final

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.inventory import DROP_IN_NAME
from kata_gpu.model.kata import (
    Configuration,
    Effective,
    Entry,
    EntryKind,
    InstalledFile,
    Provenance,
    Tee,
)
from kata_gpu.plan.kata import drop_in, effective, handlers, printing
from kata_gpu.plan.kata.dialect import DIALECTS, Dialect, Kind
from kata_gpu.plan.kata.parsing import parse, thawed
from tests.test_kata_corpus import CORPUS

BASE: Final = "/opt/kata/configuration.toml"
OURS: Final = f"/opt/kata/config.d/{DROP_IN_NAME}"
both_runtimes = pytest.mark.parametrize("runtime", list(Runtime))


def base_text(name: str) -> str:
    return (CORPUS / "bases" / f"{name}.toml").read_text()


TEXTS: Final = {
    Runtime.GO: base_text("qemu-nvidia-gpu"),
    Runtime.RUST: base_text("qemu-nvidia-gpu-runtime-rs"),
}


def configuration(text: str | None, **drop_ins: str) -> Configuration:
    """Return a base file with drop-ins, whose names are given as ``n30`` for ``30-x.toml``."""
    entries = tuple(
        Entry(name=f"{name.removeprefix('n')}-x.toml", kind=EntryKind.FILE, text=content)
        for name, content in drop_ins.items()
    )
    return Configuration(path=BASE, text=text, entries=entries)


def merged(runtime: Runtime, text: str | None = None, **drop_ins: str) -> Effective:
    found = configuration(TEXTS[runtime] if text is None else text, **drop_ins)
    return effective.merge(found, DIALECTS[runtime])


@both_runtimes
def test_the_base_file_alone_is_what_it_says(runtime: Runtime) -> None:
    found = merged(runtime)
    assert found.faults == ()
    assert tomllib.loads(printing.toml(found)) == tomllib.loads(TEXTS[runtime])
    assert {setting.file for setting in found.settings.values()} == {BASE}


@both_runtimes
def test_names_are_read_in_byte_order_and_not_as_numbers(runtime: Runtime) -> None:
    last = merged(
        runtime,
        n9='[runtime]\nvfio_mode = "vfio"\n',
        n10='[runtime]\nvfio_mode = "guest-kernel"\n',
    )
    assert last.value("runtime", "vfio_mode") == "vfio"
    assert last.settings["runtime", "vfio_mode"].file == "/opt/kata/config.d/9-x.toml"


@both_runtimes
def test_text_and_arrays_are_replaced_whole(runtime: Runtime) -> None:
    text = '[hypervisor.qemu]\nkernel_params = "a=b"\nenable_annotations = ["x"]\n'
    found = merged(runtime, n30=text)
    assert found.of_hypervisor("kernel_params") == "a=b"
    assert found.of_hypervisor("enable_annotations") == ("x",)
    assert found.of_hypervisor("machine_type") == "q35"


def test_an_array_of_tables_is_replaced_whole() -> None:
    text = '[[hypervisor.qemu.guest_extension_images]]\nname = "mine"\npath = "/m"\n'
    images = merged(Runtime.RUST, n30=text).of_hypervisor("guest_extension_images")
    assert thawed(images) == [{"name": "mine", "path": "/m"}]


@both_runtimes
def test_a_base_file_that_is_not_to_be_had_is_refused(runtime: Runtime) -> None:
    gone = Configuration(path=BASE, text=None, reason="cannot read it")
    (fault, *_) = effective.merge(gone, DIALECTS[runtime]).fatal
    assert (fault.file, fault.rule, fault.reason) == (BASE, "unreadable", "cannot read it")


def test_a_folder_that_cannot_be_listed_is_refused() -> None:
    found = Configuration(path=BASE, text=TEXTS[Runtime.GO], unlisted="cannot list it")
    (fault,) = effective.merge(found, DIALECTS[Runtime.GO]).fatal
    assert (fault.file, fault.rule) == ("/opt/kata/config.d", "unreadable")


def test_a_key_that_the_base_file_has_too_is_of_a_newer_kata() -> None:
    newer = TEXTS[Runtime.GO].replace("rootless = false", "rootless = false\nnew_in_5 = 1")
    found = merged(Runtime.GO, newer, n30="[hypervisor.qemu]\nnew_in_5 = 2\n")
    assert found.faults == ()
    assert found.of_hypervisor("new_in_5") == 2


def test_who_made_two_ports_clash_is_blamed_not_who_came_first() -> None:
    hot = merged(Runtime.GO, n30='[hypervisor.qemu]\nhot_plug_vfio = "root-port"\n').fatal
    assert [fault.file for fault in hot] == ["/opt/kata/config.d/30-x.toml"]


@pytest.mark.parametrize(
    "text",
    [
        "a." * 5000 + "a = 1",
        "a = " + "[" * 5000,
        "a = " + "{a = " * 3000,
        "a = " + "9" * 5000,
        "[" + "a." * 40 + "a]",
        "\n".join(f"a{n} = 1" for n in range(5000)),
        "a = '\x00'",
        "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace") + " = ",
    ],
    ids=["dotted", "arrays", "tables", "digits", "table", "many", "nul", "replaced"],
)
def test_what_is_hostile_is_a_fault_and_no_exception(text: str) -> None:
    parsed = parse(text)
    assert parsed.error is not None
    assert parsed.error.startswith("not TOML: ")
    assert [f.rule for f in merged(Runtime.GO, n30=text).fatal] == ["not-toml"]


# Properties

_VALUES: Final[dict[Kind, st.SearchStrategy[Any]]] = {
    Kind.STRING: st.text(st.characters(codec="ascii"), max_size=8),
    Kind.BOOL: st.booleans(),
    Kind.U32: st.integers(1000, (1 << 32) - 1),
    Kind.U64: st.integers(0, (1 << 63) - 1),
    Kind.I64: st.integers(-(1 << 63), (1 << 63) - 1),
    Kind.F32: st.floats(0, 16),
    Kind.STRINGS: st.lists(st.text(max_size=4), max_size=3),
}


def _tables(dialect: Dialect) -> st.SearchStrategy[dict[str, Any]]:
    """Make drop-ins of keys that a dialect has, with values of their types."""

    def table(name: str) -> st.SearchStrategy[dict[str, Any]]:
        keys = {k: kind for k, kind in dialect.tables[name].keys.items() if kind in _VALUES}
        return st.fixed_dictionaries(
            {}, optional={key: _VALUES[kind] for key, kind in keys.items()}
        )

    return st.fixed_dictionaries(
        {
            "hypervisor": st.fixed_dictionaries({"qemu": table("hypervisor")}),
            "agent": st.fixed_dictionaries({"kata": table("agent")}),
            "runtime": table("runtime"),
        }
    )


any_runtime = st.sampled_from(list(Runtime))
with_drop_in = any_runtime.flatmap(lambda r: st.tuples(st.just(r), _tables(DIALECTS[r])))


def flat(tables: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return dict(parse(tomli_w.dumps(tables)).values)


@settings(deadline=None, max_examples=30)
@given(with_drop_in)
def test_a_merge_has_all_that_is_ours_and_loses_nothing_of_others(
    drawn: tuple[Runtime, dict[str, Any]],
) -> None:
    runtime, tables = drawn
    before = merged(runtime)
    after = merged(runtime, n60=tomli_w.dumps(tables))
    ours = flat(tables)
    assert {key: after.value(*key) for key in ours} == ours
    kept = before.settings.keys() - ours.keys()
    assert {key: after.settings[key] for key in kept} == {k: before.settings[k] for k in kept}
    assert after.settings.keys() == before.settings.keys() | ours.keys()


@settings(deadline=None, max_examples=30)
@given(with_drop_in)
def test_what_was_merged_is_not_changed_by_the_same_again(
    drawn: tuple[Runtime, dict[str, Any]],
) -> None:
    runtime, tables = drawn
    text = tomli_w.dumps(tables)
    once, twice = merged(runtime, n60=text), merged(runtime, n60=text, n61=text)
    assert {k: s.value for k, s in once.settings.items()} == {
        k: s.value for k, s in twice.settings.items()
    }
    printed = merged(runtime, printing.toml(once))
    assert {k: s.value for k, s in printed.settings.items()} == {
        k: s.value for k, s in once.settings.items()
    }


@settings(deadline=None, max_examples=50)
@given(any_runtime, st.permutations(["n10", "n30", "n9", "n50"]))
def test_the_order_of_a_listing_does_not_matter(runtime: Runtime, names: list[str]) -> None:
    texts = {name: f'[runtime]\njaeger_user = "{name}"\n' for name in names}
    found = merged(runtime, None, **texts)
    assert found.value("runtime", "jaeger_user") == "n9"


@settings(deadline=None, max_examples=50)
@given(
    any_runtime,
    st.integers(0, 64),
    st.lists(st.from_regex(r"[a-z]{1,4}(=[a-z]{1,3})?", fullmatch=True), max_size=4),
    st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), max_size=3),
    st.none() | st.integers(1, 86400),
)
def test_ours_is_never_refused_loses_no_list_and_is_the_same_the_next_time(
    runtime: Runtime, functions: int, params: list[str], annotations: list[str], dial_s: int | None
) -> None:
    handler = KataHandler(
        name="kata",
        runtime=runtime,
        config=BASE,
        kernel_params=tuple(params),
        enable_annotations=tuple(annotations),
        dial_timeout_s=dial_s,
    )
    files = configuration(TEXTS[runtime])
    before = effective.merge(files, DIALECTS[runtime])
    text = drop_in.render(handler, functions, before)
    after = effective.merge(files.with_drop_in(DROP_IN_NAME, text), DIALECTS[runtime])
    assert after.faults == ()
    ours = drop_in.values(handler, functions, before)
    assert {k: thawed(after.value(*k)) for k in ours} == {k: thawed(v) for k, v in ours.items()}
    held = str(before.of_hypervisor("kernel_params")).split()
    assert str(after.of_hypervisor("kernel_params")).split()[: len(held)] == held
    assert set(params) <= set(str(after.of_hypervisor("kernel_params")).split())
    allowed = before.of_hypervisor("enable_annotations")
    assert after.of_hypervisor("enable_annotations")[: len(allowed)] == allowed
    assert set(annotations) <= set(after.of_hypervisor("enable_annotations"))
    assert drop_in.render(handler, functions, before) == text


_ANYTHING: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none().map(lambda _: False)
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.datetimes()
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
_WORDS: Final = st.sampled_from(
    (
        *("hypervisor", "agent", "runtime", "factory", "qemu", "clh", "kata", "x", "image", ""),
        *("initrd", "cold_plug_vfio", "pcie_root_port", "default_memory", "experimental"),
        *("vfio_mode", "name", "reconnect_timeout_ms", "guest_extension_images", "mem_agent"),
    )
)
_TABLES: Final = st.dictionaries(
    _WORDS, st.dictionaries(_WORDS, st.dictionaries(_WORDS, _ANYTHING) | _ANYTHING) | _ANYTHING
)


@settings(deadline=None, max_examples=60)
@given(any_runtime, _TABLES, _TABLES)
def test_whatever_toml_it_is_there_is_an_answer_that_can_be_printed(
    runtime: Runtime, base: dict[str, Any], other: dict[str, Any]
) -> None:
    found = merged(runtime, tomli_w.dumps(base), n30=tomli_w.dumps(other))
    assert all(fault.reason and fault.rule for fault in found.faults)
    assert (
        tomllib.loads(printing.with_origins(found)).keys()
        == tomllib.loads(printing.toml(found)).keys()
    )
    file = InstalledFile(
        name="kata",
        config=BASE,
        provenance=Provenance.UNKNOWN,
        version=None,
        configuration=configuration(tomli_w.dumps(base), n30=tomli_w.dumps(other)),
    )
    json.dumps(printing.document(found, file))
    handlers.describe(file)


@settings(deadline=None, max_examples=50)
@given(any_runtime, st.text(max_size=40), st.text(max_size=40))
def test_whatever_text_it_is_there_is_an_answer(runtime: Runtime, base: str, other: str) -> None:
    found = merged(runtime, base, n30=other)
    assert found.fatal or runtime is Runtime.GO
    assert printing.toml(found) is not None


# Printing


@both_runtimes
def test_with_origins_it_is_the_same_toml(runtime: Runtime) -> None:
    found = merged(runtime, n30='[runtime]\n"a b" = {c = [{d = 1}]}\nvfio_mode = "vfio"\n')
    text = printing.with_origins(found)
    assert tomllib.loads(text) == tomllib.loads(printing.toml(found))
    assert 'vfio_mode = "vfio"  # from /opt/kata/config.d/30-x.toml' in text.splitlines()
    assert f'machine_type = "q35"  # from {BASE}' in text.splitlines()


# What a base file is


@pytest.mark.parametrize(
    ("path", "text", "runtime", "is_doubtful"),
    [
        ("/a/c.toml", "", Runtime.GO, False),
        ("/a/runtime-rs/c.toml", "", Runtime.RUST, False),
        ("/a/c.toml", '[runtime]\nname = "virt_container"\n', Runtime.RUST, True),
        ("/a/c.toml", "[agent.kata]\ndial_timeout_ms = 1\n", Runtime.RUST, True),
        ("/a/runtime-rs/c.toml", "[agent.kata]\ndial_timeout = 1\n", Runtime.GO, True),
        ("/a/runtime-rs.toml", "[agent.kata]\ndial_timeout = 1\n", Runtime.GO, False),
        (
            "/a/c.toml",
            "[agent.kata]\ndial_timeout = 1\nreconnect_timeout_ms = 1\n",
            Runtime.GO,
            True,
        ),
        ("/a/runtime-rs/c.toml", TEXTS[Runtime.RUST], Runtime.RUST, False),
        ("/a/c.toml", TEXTS[Runtime.GO], Runtime.GO, False),
        ("/a/runtime-rs/c.toml", "no TOML", Runtime.RUST, False),
    ],
)
def test_a_files_runtime_is_what_it_holds_then_where_it_lies(
    path: str, text: str, runtime: Runtime, is_doubtful: bool
) -> None:
    found, doubt = handlers.runtime(Configuration(path=path, text=text))
    assert (found, doubt is not None) == (runtime, is_doubtful)


@pytest.mark.parametrize(
    ("base", "tee"),
    [
        ("qemu-nvidia-gpu", Tee.NONE),
        ("qemu-nvidia-gpu-snp", Tee.SNP),
        ("qemu-nvidia-gpu-tdx", Tee.TDX),
        ("qemu-nvidia-gpu-runtime-rs", Tee.NONE),
        ("qemu-nvidia-gpu-snp-runtime-rs", Tee.SNP),
        ("qemu-nvidia-gpu-tdx-runtime-rs", Tee.TDX),
    ],
)
def test_the_trusted_environment_is_in_the_configuration(base: str, tee: Tee) -> None:
    runtime = Runtime.RUST if base.endswith("rs") else Runtime.GO
    found = merged(runtime, base_text(base))
    assert found.faults == ()
    assert handlers.tee(found, "kata") is tee


def test_a_name_speaks_where_the_configuration_does_not() -> None:
    assert handlers.tee(merged(Runtime.GO), "kata-qemu-snp") is Tee.SNP
    other = merged(Runtime.GO, n30="[hypervisor.qemu]\nconfidential_guest = true\n")
    assert handlers.tee(other, "kata-qemu-tdx-debug") is Tee.TDX
    assert handlers.tee(other, "kata-qemu-se") is Tee.OTHER


def test_a_handler_tells_what_stops_its_pods() -> None:
    broken = configuration(TEXTS[Runtime.GO], n30="no TOML")
    file = InstalledFile(
        name="kata-x",
        config="/etc/x.toml",
        provenance=Provenance.CUSTOM,
        version="4.1.0",
        configuration=broken,
        declared=Runtime.GO,
    )
    found = handlers.describe(file)
    assert (found.name, found.hypervisor, found.in_blueprint) == ("kata-x", "qemu", True)
    assert found.problems[0].startswith("/opt/kata/config.d/30-x.toml: not TOML: ")


def test_a_file_that_is_not_of_the_runtime_that_the_blueprint_says_is_a_problem() -> None:
    file = InstalledFile(
        name="kata-x",
        config=BASE,
        provenance=Provenance.BLUEPRINT,
        version=None,
        configuration=configuration(TEXTS[Runtime.RUST]),
        declared=Runtime.GO,
    )
    found = handlers.describe(file)
    assert found.runtime is Runtime.GO
    assert "looks like the rust runtime's, and the blueprint says go" in found.problems[0]
