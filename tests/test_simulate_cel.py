"""CEL as Kubernetes has it for devices."""

from fractions import Fraction
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_gpu.plan.simulate import quantity, versions
from kata_gpu.plan.simulate.cel import CelFailure, Selectors
from kata_gpu.plan.simulate.values import Device, DeviceId, Version

GPU: Final = Device(
    id=DeviceId("gpu.example.com", "n1", "gpu-0"),
    attributes={
        "gpu.example.com/vendor": "nvidia",
        "gpu.example.com/lanes": 16,
        "gpu.example.com/cc": True,
        "gpu.example.com/firmware": Version("1.2.3"),
        "resource.kubernetes.io/numaNode": 1,
    },
    capacity={"gpu.example.com/memory": Fraction(80 << 30)},
)
SELECTORS: Final = Selectors()
A: Final = "device.attributes['gpu.example.com']"
M: Final = "device.capacity['gpu.example.com'].memory"


def found(expression: str) -> bool | CelFailure:
    return SELECTORS.evaluate(expression, GPU)


def failure(expression: str) -> CelFailure:
    answer = found(expression)
    assert isinstance(answer, CelFailure)
    return answer


@pytest.mark.parametrize(
    "expression",
    [
        "device.driver == 'gpu.example.com'",
        f"{A}.vendor == 'nvidia' && {A}['lanes'] >= 8",
        f"{A}.cc",
        f"{A}.vendor in ['amd', 'nvidia']",
        f"{A}.vendor.matches('^nv')",
        f"has({A}.vendor) && !has({A}.other)",
        f"{A}.?other.orValue(7) == 7",
        "device.attributes['unknown.example.com'].?x.orValue(true)",
        "!('unknown.example.com' in device.attributes)",
        "!('unknown.example.com' in device.attributes) || "
        "device.attributes['unknown.example.com'].x",
        "'gpu.example.com' in device.attributes",
        f"cel.bind(own, {A}, own.lanes == 16 && own.cc)",
        "cel.bind(d, device, d.driver.endsWith('.com'))",
        "device.attributes['resource.kubernetes.io'].numaNode == 1",
        f"{M}.compareTo(quantity('40Gi')) > 0",
        f"{M}.isGreaterThan(quantity('79Gi')) && {M}.isLessThan(quantity('81Gi'))",
        f"{M} == quantity('81920Mi')",
        f"{M}.add(quantity('1Gi')).sub(1024).asInteger() == {(81 << 30) - 1024}",
        "isQuantity('1.5e3') && !isQuantity('1,5') && quantity('500m').asApproximateFloat() == 0.5",
        "sign(quantity('-3')) == -1 && !quantity('0.5').isInteger()",
        f"{A}.firmware.isGreaterThan(semver('1.2.3-rc.1'))",
        f"{A}.firmware.compareTo(semver('v1.2', true)) == 1 && {A}.firmware.patch() == 3",
        f"{A}.firmware == semver('1.2.3+build') && {A}.vendor == 'nvidia'",
        "isSemver('1.0.0-alpha.1') && !isSemver('580.95.05') && isSemver('580.95.05', true)",
        "'NVIDIA'.lowerAscii() == 'nvidia' && 'a,b'.split(',').size() == 2",
        "!device.allowMultipleAllocations",
        "has(device.allowMultipleAllocations) && has( device.driver )",
        "device.attributes.exists(d, d == 'gpu.example.com')",
        "!device.attributes.exists(d, d == 'vendor')",
        "device.capacity.exists_one(d, true) && device.attributes.size() == 2",
        "size(device.attributes) == 2 && 'vendor'.size() == 6",
        "[1, 2, 3].exists(n, n == 2) && [1, 2].all(n, n > 0)",
    ],
)
def test_what_kubernetes_evaluates_to_true_is_true(expression: str) -> None:
    assert found(expression) is True


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (f"{A}.other == 'x'", 'Key not found in map : "other"'),
        ("device.attributes['unknown.example.com'].x", 'Key not found in map : "x"'),
        (f"{M} > 5", "found no matching overload for '_>_'"),
        ("device.driver == 5", "found no matching overload for '_==_'"),
        ("device.driver", "it must be a bool, and is of type string"),
        (f"{A}.vendor", "it must be a bool, and is of type string"),
        ("quantity('much').isInteger()", "'much' is no quantity"),
        (f"{M}.sign() == 1", "undeclared reference to 'sign'"),
        ("math.greatest(1, 2) == 2", "undeclared reference to 'math'"),
        ("semver('580.95.05').major() == 580", "'580.95.05' is no semantic version"),
        ("device.driver ==", "Syntax error"),
        ("nothing", "undeclared reference to 'nothing'"),
        ("'" + "x" * 10240 + "' == ''", "10240 are allowed"),
    ],
)
def test_what_fails_in_kubernetes_fails(expression: str, said: str) -> None:
    answer = failure(expression)
    assert said in answer.text
    assert not answer.is_ours


@pytest.mark.parametrize(
    "expression",
    [
        f"{A}.vendor.find('n') == 'n'",
        "sets.contains([1], [1])",
        "isIP('10.0.0.1')",
        "[1, 2].isSorted()",
        "[1, 2].indexOf(2) == 1",
        "lists.range(2) == [0, 1]",
        "{'a': 1}.all(k, v, v == 1)",
        "{'a': 1}.transformList(k, v, v) == [1]",
        f"{M}.asApproximateFloat() > 80",
        f"{A}.firmware == '1.2.3'",
        f"'1.2.3' == {A}['firmware']",
        f"{M}.asInteger() <= 80.5",
        f"{A}.vendor.includes('nvidia')",
        "[" + "1," * 2000 + "1].all(x, [" + "1," * 2000 + "1].all(y, x == y))",
        "(" * 100 + "true" + ")" * 100,
    ],
)
def test_what_only_this_simulation_cannot_evaluate_is_said_to_be_so(expression: str) -> None:
    assert failure(expression).is_ours


@given(st.text(max_size=60))
def test_no_text_at_all_does_harm(expression: str) -> None:
    assert found(expression) in {True, False} or isinstance(found(expression), CelFailure)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("80Gi", 80 << 30),
        ("1.5", Fraction(3, 2)),
        ("500m", Fraction(1, 2)),
        ("2e3", 2000),
        ("3E", 3 * 10**18),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("-1k", -1000),
    ],
)
def test_a_quantity_is_an_exact_number(text: str, number: Fraction) -> None:
    assert quantity.parse(text) == number


@pytest.mark.parametrize(
    "text", ["", "Gi", "1 Gi", "1gi", "1e999", "0x10", "1.2.3", "9" * 41, "\u0661"]
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse(text)


@given(st.integers(0, 1 << 70))
def test_the_text_of_a_quantity_is_the_same_quantity(number: int) -> None:
    assert quantity.parse(quantity.text(Fraction(number))) == number


def test_versions_are_ordered_as_semver_says() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"]
    ordered += ["1.0.0-rc.1", "1.0.0", "1.0.1", "1.10.0", "2.0.0"]
    for before, after in pairwise(ordered):
        assert versions.compare(before, after) == -1
        assert versions.compare(after, before) == 1


@pytest.mark.parametrize("text", ["1.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0-a..b", "v1.0.0"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no semantic version"):
        versions.parse(text)
