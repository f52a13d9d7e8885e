"""One table, two kernels: what holds for the fake kernel holds for a real one."""

from pathlib import Path

import pytest

from tests.kernel import (
    attributes,
    contract_binding,
    contract_devices,
    contract_drivers,
    contract_power,
)
from tests.kernel.contract import HOME, HOME_OF_ONE_CARD, HOME_WITHOUT_IOMMU, Row, Write
from tests.kernel.play import play
from tests.kernel.targets import FakeTarget, Locates, RealTarget, Target

ROWS = (
    *contract_binding.ROWS,
    *contract_drivers.ROWS,
    *contract_devices.ROWS,
    *contract_power.ROWS,
)
ROWS_WITHOUT_IOMMU = contract_devices.ROWS_WITHOUT_IOMMU
ROWS_WITH_NO_WAY_BACK = contract_devices.ROWS_WITH_NO_WAY_BACK

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_row_without_iommu = pytest.mark.parametrize(
    "row", ROWS_WITHOUT_IOMMU, ids=lambda row: row.name
)
each_row_with_no_way_back = pytest.mark.parametrize(
    "row", ROWS_WITH_NO_WAY_BACK, ids=lambda row: row.name
)


@pytest.fixture(scope="module")
def real(machine: Locates) -> Target:
    """The kernel of the guest that this runs in, with VFIO loaded."""
    return _with_vfio(RealTarget(machine))


@each_row
def test_the_fake_kernel_keeps_the_contract(row: Row, tmp_path: Path) -> None:
    play(_with_vfio(FakeTarget(tmp_path)), row, HOME)


@pytest.mark.parametrize("row", [row for row in ROWS if row.then_from_7], ids=lambda row: row.name)
def test_the_fake_kernel_keeps_the_contract_of_linux_7(row: Row, tmp_path: Path) -> None:
    play(_with_vfio(FakeTarget(tmp_path, release="7.3.4+deb13-amd64")), row, HOME)


@each_row_without_iommu
def test_the_fake_kernel_keeps_the_contract_without_an_iommu(row: Row, tmp_path: Path) -> None:
    play(_with_vfio(FakeTarget(tmp_path, iommu=False)), row, HOME_WITHOUT_IOMMU)


@each_row_with_no_way_back
def test_the_fake_kernel_keeps_the_contract_that_changes_it(row: Row, tmp_path: Path) -> None:
    play(_with_vfio(FakeTarget(tmp_path)), row, HOME_OF_ONE_CARD)


@pytest.mark.lab("multifunction")
@each_row_with_no_way_back
def test_the_real_kernel_keeps_the_contract_that_changes_it(row: Row, real: Target) -> None:
    play(real, row, HOME_OF_ONE_CARD)


@pytest.mark.lab
@each_row
def test_the_real_kernel_keeps_the_contract(row: Row, real: Target) -> None:
    play(real, row, HOME)


@pytest.mark.lab("no-iommu")
@each_row_without_iommu
def test_the_real_kernel_keeps_the_contract_without_an_iommu(row: Row, real: Target) -> None:
    play(real, row, HOME_WITHOUT_IOMMU)


def test_every_row_says_something_of_its_own() -> None:
    names = [row.name for row in (*ROWS, *ROWS_WITH_NO_WAY_BACK, *ROWS_WITHOUT_IOMMU)]
    assert len(names) == len(set(names))
    assert all(row.then for row in (*ROWS, *ROWS_WITH_NO_WAY_BACK, *ROWS_WITHOUT_IOMMU))


def test_every_attribute_that_the_fake_kernel_models_is_in_the_contract() -> None:
    written = {row.act.path.rpartition("/")[2] for row in ROWS if isinstance(row.act, Write)}
    assert attributes.MODELLED - written == {"drivers_autoprobe"}
    given = [act for row in ROWS for act in row.given]
    assert any(isinstance(act, Write) and "drivers_autoprobe" in act.path for act in given)


def _with_vfio(target: Target) -> Target:
    for module in ("vfio-pci", "vfio_iommu_type1"):
        target.host.run(("modprobe", "--", module), timeout_s=30)
    return target
