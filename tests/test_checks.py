"""What a Kata runtime cannot take is said of the unit, by handler."""

from dataclasses import replace

from kata_gpu.model.blueprint import KataHandler, Runtime
from kata_gpu.model.ledger import Ledger
from kata_gpu.plan import checks, units
from tests.values import (
    AUDIO_CLASS,
    SWITCH_CLASS,
    blueprint_of,
    function,
    inventory_of,
    pool,
)

GO = KataHandler(name="go", runtime=Runtime.GO, config="/go.toml")
RUST = KataHandler(name="rust", runtime=Runtime.RUST, config="/rust.toml")
GPU = function("01:00.0")
AUDIO = function("01:00.1", AUDIO_CLASS)
USB = function("01:00.2", 0x0C0330)


def test_a_gpu_with_audio_suits_both_runtimes() -> None:
    assert list(checks.unit("u", [GPU, AUDIO], [GO, RUST])) == []


def test_two_functions_of_a_group_do_not_suit_the_rust_runtime() -> None:
    (finding,) = checks.unit("u", [GPU, AUDIO, USB], [GO, RUST])
    assert "2 functions beside audio" in finding.reason
    assert "handler rust (rust)" in finding.reason


def test_with_a_device_of_its_own_each_function_suits_the_rust_runtime() -> None:
    functions = [replace(f, vfio_cdev=f"vfio{n}") for n, f in enumerate((GPU, USB))]
    assert list(checks.unit("u", functions, [RUST])) == []


def test_a_bundle_of_more_functions_than_root_ports_does_not_suit_the_go_runtime() -> None:
    gpus = [function(f"{n:02x}:00.0", group=n) for n in range(1, 18)]
    found = replace(blueprint_of(replace(pool("gpus"), bundle="all")), handlers=(GO, RUST))
    formed = units.form(found, inventory_of(*gpus), Ledger()).units
    (finding,) = checks.bundles(found, formed)
    assert finding.subject == "bundle all"
    assert "17 functions" in finding.reason
    assert list(checks.bundles(found, formed[:16])) == []


def test_more_functions_than_root_ports_do_not_suit_the_go_runtime() -> None:
    many = [function(f"01:{n:02x}.0", SWITCH_CLASS) for n in range(17)]
    (finding,) = checks.unit("u", many, [GO])
    assert "17 functions" in finding.reason
    assert "at most 16 root ports" in finding.reason
