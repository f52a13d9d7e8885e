"""States of a node as its agent has them after a turn, for tests to change one thing about."""

from datetime import UTC, datetime

from kata_gpu.model.inventory import KataBase
from kata_gpu.model.pci import Binding
from kata_gpu.model.platform import Platform
from kata_gpu.model.report import NodeState, Report, UnitFunction, UnitStatus
from kata_gpu.model.unit import UnitState
from tests.values import PLATFORM, address


def unit(where: str, state: UnitState = UnitState.AVAILABLE, *, pool: str = "gpus") -> UnitStatus:
    """Return a unit of one GPU."""
    function = UnitFunction(
        address=address(where), label="GPU", binding=Binding(driver="vfio-pci", override=None)
    )
    return UnitStatus(
        id=str(address(where)),
        state=state,
        reason="as the test says",
        pool=pool,
        resource="nvidia.com/pgpu",
        groups=(1,),
        numa_node=0,
        functions=(function,),
        nodes=("/dev/vfio/1",),
        holders=(),
        cleaned=None,
    )


def kata(handler: str, *, is_there: bool = True) -> KataBase:
    """Return a handler's base file, or that there is none."""
    return KataBase(
        handler=handler,
        config=f"/opt/kata/{handler}.toml",
        directory="/opt/kata" if is_there else None,
        reason=None if is_there else "there is no such file",
    )


def node_state(
    *units: UnitStatus, platform: Platform = PLATFORM, bases: tuple[KataBase, ...] = ()
) -> NodeState:
    """Return the answer to how a node with these units is."""
    return NodeState(
        agent="1.0",
        blueprint="test",
        pass_number=1,
        read_at=datetime(2026, 1, 1, tzinfo=UTC),
        platform=platform,
        units=units,
        kata=bases,
        files=(),
        findings=(),
        problems=(),
        last_report=Report(),
    )
