"""What an admin wrote is taken exactly, or refused in the admin's own terms."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.errors import InvalidBlueprint
from kata_gpu.model.blueprint import Blueprint, KataHandler, Mode, Pool, Runtime, Selector
from kata_gpu.model.kubernetes import PodResources
from kata_gpu.model.pci import PciAddress
from kata_gpu.settings import agent_file, blueprint, toml_file
from kata_gpu.settings.agent import Endpoint, Kubernetes, Settings

CONFIGS: Final = Path(__file__).parents[1] / "configs"
HEAD: Final = 'schema = 1\nversion = "1"\n'
POOL: Final = 'pool = [{name = "p", mode = "host", select = [{vendor = "10de"}], KEY}]\n'
SELECTOR: Final = 'pool = [{name = "p", mode = "host", select = [{KEY}]}]\n'
HANDLER: Final = 'kata.handler = [{name = "k", runtime = "go", config = "/k.toml", KEY}]\n'


def complaint(text: str) -> str:
    """Return what is wrong with a blueprint."""
    with pytest.raises(InvalidBlueprint) as caught:
        blueprint.parse(text, origin="/etc/bp.toml")
    return str(caught.value)


def settings_of(text: str) -> Settings:
    return toml_file.parse(text, agent_file.SettingsFile, origin="agent.toml").value()


# What is taken


def test_the_blueprint_that_we_ship_is_valid() -> None:
    shipped = blueprint.load(CONFIGS / "blueprint.toml")
    assert [pool.resource for pool in shipped.pools] == ["nvidia.com/pgpu"]
    runtimes = [handler.runtime for handler in shipped.handlers]
    assert runtimes == [Runtime.GO, Runtime.RUST, Runtime.GO, Runtime.GO]


def test_the_settings_that_we_ship_are_the_defaults() -> None:
    assert agent_file.load(CONFIGS / "agent.toml") == Settings()
    shown = re.sub(r"^# (?=[a-z_]+ = |\[)", "", (CONFIGS / "agent.toml").read_text(), flags=re.M)
    assert shown.count("\n#") < 5
    found = settings_of(shown)
    assert found.kubernetes is not None
    assert (found.kubernetes.kubelet_directory, found.kubernetes.api) == ("/var/lib/kubelet", True)
    assert found.metrics == Endpoint(address="127.0.0.1", port=9400)
    assert replace(found, kubernetes=None, metrics=None) == Settings()


def test_every_key_that_the_shipped_blueprint_mentions_is_one() -> None:
    text = (CONFIGS / "blueprint.toml").read_text()
    found = blueprint.parse(re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.M))
    assert found.pools[0].min_units == 8
    assert [handler.name for handler in found.wiring.handlers] == ["kata-gpu"]
    assert found.pools[0].selectors[0].product == "*H100*"


def test_every_key_reaches_the_blueprint() -> None:
    text = """
        schema = 1
        version = "v1.2-rc_3"
        [[pool]]
        name = "gpus"
        mode = "passthrough"
        resource = "nvidia.com/pgpu"
        min_units = 1
        max_units = 4
        stop_services = ["nvidia-persistenced.service", "dcgm@0.service"]
        virtual_functions = 2
        [[pool.select]]
        vendor = "0x10de"
        device = "2330"
        class = "0302"
        address = "0000:41:00.0"
        numa_node = 1
        product = "*H100*"
        [[pool]]
        name = "rest"
        mode = "ignore"
        select = [{ class = "03" }]
        [[kata.handler]]
        name = "kata-qemu"
        runtime = "rust"
        config = "/opt/kata/configuration.toml"
        hypervisor = "qemu"
        pod_resource_api_sock = "/run/pr.sock"
        pcie_root_ports = 8
        cold_plug_vfio = "no-port"
        vfio_mode = "vfio"
        memory_mib = 4096
        kernel_params = ["a=b", "quiet"]
        enable_annotations = ["default_vcpus"]
        dial_timeout_s = 60
        create_container_timeout_s = 600
        cdh_api_timeout_s = 90
        launch_process_timeout_s = 15
        confidential = "none"
    """
    gpus = Selector(
        vendor=0x10DE,
        device=0x2330,
        class_prefix="0302",
        address=PciAddress(0, 0x41, 0, 0),
        numa_node=1,
        product="*H100*",
    )
    assert blueprint.parse(text) == Blueprint(
        version="v1.2-rc_3",
        pools=(
            Pool(
                name="gpus",
                mode=Mode.PASSTHROUGH,
                selectors=(gpus,),
                resource="nvidia.com/pgpu",
                min_units=1,
                max_units=4,
                stop_services=("nvidia-persistenced.service", "dcgm@0.service"),
                virtual_functions=2,
            ),
            Pool(name="rest", mode=Mode.IGNORE, selectors=(Selector(class_prefix="03"),)),
        ),
        handlers=(
            KataHandler(
                name="kata-qemu",
                runtime=Runtime.RUST,
                config="/opt/kata/configuration.toml",
                pod_resource_api_sock="/run/pr.sock",
                pcie_root_ports=8,
                cold_plug_vfio="no-port",
                vfio_mode="vfio",
                memory_mib=4096,
                kernel_params=("a=b", "quiet"),
                enable_annotations=("default_vcpus",),
                dial_timeout_s=60,
                create_container_timeout_s=600,
                cdh_api_timeout_s=90,
                launch_process_timeout_s=15,
                confidential="none",
            ),
        ),
    )


def test_a_blueprint_without_pools_is_a_node_without_passthrough() -> None:
    assert blueprint.parse(HEAD) == Blueprint(version="1")


def test_every_key_reaches_the_settings() -> None:
    text = """
        blueprint = "/b.toml"
        state_directory = "/state"
        socket = "/s.sock"
        socket_mode = "0600"
        cdi_directory = "/cdi"
        kata_prefixes = ["/srv/kata"]
        rescan_interval_s = 5
        settle_s = 0
    """
    assert settings_of(text) == Settings(
        blueprint="/b.toml",
        state_directory="/state",
        socket="/s.sock",
        socket_mode=0o600,
        cdi_directory="/cdi",
        kata_prefixes=("/srv/kata",),
        rescan_interval_s=5.0,
        settle_s=0.0,
    )


# Keys


@pytest.mark.parametrize(
    ("text", "where", "allowed"),
    [
        (HEAD + "pools = []", "pools", "cdi, drift, kata, pool, runtime, schema, version"),
        (
            HEAD + POOL.replace("KEY", "max = 1"),
            "pool[1].max",
            "bind, bundle, max_units, min_units, mode, name, offer, resource, select, "
            "stop_services, virtual_functions",
        ),
        (
            HEAD + SELECTOR.replace("KEY", 'vendor = "10de", model = "x"'),
            "pool[1].select[1].model",
            "address, class, device, numa_node, product, vendor",
        ),
        (HEAD + "kata.handlers = []", "kata.handlers", "handler, quarantine"),
        (
            HEAD + HANDLER.replace("KEY", "ports = 2"),
            "kata.handler[1].ports",
            "cdh_api_timeout_s, cold_plug_vfio, confidential, config, create_container_timeout_s, "
            "dial_timeout_s, enable_annotations, hot_plug_vfio, hypervisor, kernel_params, "
            "launch_process_timeout_s, memory_mib, name, pcie_root_ports, pod_resource_api_sock, "
            "runtime, vfio_mode",
        ),
    ],
    ids=["file", "pool", "selector", "kata", "handler"],
)
def test_an_unknown_key_is_named_with_those_that_are_allowed(
    text: str, where: str, allowed: str
) -> None:
    assert complaint(text) == (
        f"cannot use /etc/bp.toml: unknown key {where} (allowed here: {allowed})"
    )


def test_an_unknown_setting_is_named_with_those_that_are_allowed() -> None:
    with pytest.raises(InvalidBlueprint, match=r"agent.toml: unknown key sockets .*socket_mode"):
        settings_of('sockets = "/run/s"')


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = complaint('schema = 2\nversion = "1"\npool = [{name = "p", mode = "x", select = []}]')
    assert [part.partition(" is ")[0] for part in text.split(": ", 1)[1].split("; ")[:2]] == [
        "schema",
        "pool[1].mode",
    ]


def test_keys_that_are_missing_are_named() -> None:
    assert complaint("") == (
        "cannot use /etc/bp.toml: key schema is missing; key version is missing"
    )


def test_a_bad_item_does_not_make_its_array_seem_empty() -> None:
    assert "at least one" not in complaint(HEAD + SELECTOR.replace("KEY", 'vendor = "x"'))


def test_a_key_of_control_characters_stays_on_one_line() -> None:
    assert r"unknown key 'a\nb\x1b'" in complaint(HEAD + r'"a\nb\u001b" = 1')


# Values


@pytest.mark.parametrize(
    ("text", "where", "allowed"),
    [
        ('schema = 2\nversion = "1"', "schema is 2", "this agent knows schema 1"),
        ('schema = "1"\nversion = "1"', "schema is '1'", "a whole number"),
        ('schema = 1\nversion = ""', "version is ''", "expected"),
        ('schema = 1\nversion = "a b"', "version is 'a b'", "expected"),
        (HEAD + "pool = 5", "pool is 5", "an array"),
        (HEAD + "[pool]", "pool", "an array"),
        (HEAD + "pool = [7]", "pool[1] is 7", "a table"),
        (HEAD + POOL.replace('"p"', '"-p"'), "pool[1].name is '-p'", "expected"),
        (
            HEAD + POOL.replace('"host"', '"vm"'),
            "pool[1].mode is 'vm'",
            "passthrough, host, ignore",
        ),
        (HEAD + POOL.replace('[{vendor = "10de"}]', "[]"), "pool[1].select", "at least one"),
        (HEAD + POOL.replace("KEY", "min_units = -1"), "min_units is -1", "or equal to 0"),
        (HEAD + POOL.replace("KEY", "min_units = true"), "min_units is True", "a whole number"),
        (HEAD + POOL.replace("KEY", "max_units = 1.5"), "max_units is 1.5", "a whole number"),
        (HEAD + POOL.replace("KEY", 'resource = "gpu"'), "resource is 'gpu'", "expected"),
        (HEAD + POOL.replace("KEY", 'resource = "a.b/cd"'), "pool[1]", "takes no resource"),
        (HEAD + POOL.replace('"host"', '"passthrough"'), "pool[1]", "needs a resource"),
        (HEAD + POOL.replace("KEY", "min_units = 2, max_units = 1"), "pool[1]", "is less than"),
        (
            HEAD + POOL.replace("KEY", 'stop_services = ["a.service"]'),
            "pool[1]",
            "stops no services",
        ),
        *(
            (
                HEAD + POOL.replace("KEY", f'stop_services = ["{name}"]'),
                f"pool[1].stop_services[1] is '{name}'",
                "full name of a systemd service",
            )
            for name in ("dcgm", "-a.service", "a@.service", "a.socket", "a/b.service", ".service")
        ),
        (
            HEAD + POOL.replace("KEY", "virtual_functions = 2"),
            "pool[1]",
            'mode "host" makes nothing, so it takes no virtual_functions',
        ),
        (HEAD + POOL.replace("KEY", "virtual_functions = 0"), "virtual_functions is 0", "1"),
        (HEAD + POOL.replace("KEY", 'bind = "on-claim"'), 'mode "host" offers nothing', "no bind"),
        (
            HEAD
            + POOL.replace("host", "passthrough").replace(
                "KEY", 'resource = "a.io/b", bind = "on-claim"'
            ),
            'bind "on-claim" needs offer "dra"',
            "no moment",
        ),
        (
            HEAD
            + POOL.replace("host", "passthrough").replace(
                "KEY", 'resource = "a.io/b", offer = "none", bundle = "b"'
            ),
            'offer "none" offers nothing',
            "no bundle",
        ),
        *(
            (
                HEAD
                + POOL.replace("host", "passthrough").replace(
                    "KEY", f'resource = "a.io/b", bundle = "{name}"'
                ),
                f"bundle is '{name}'",
                why,
            )
            for name, why in (
                ("0000-41-00-0", "could not be a unit's"),
                ("HGX", "as a DNS label has"),
                ("0000:41:00.0", "as a DNS label has"),
            )
        ),
        (
            HEAD + POOL.replace("KEY", "virtual_functions = true"),
            "virtual_functions is True",
            "a whole number",
        ),
        (HEAD + SELECTOR.replace("KEY", ""), "pool[1].select[1]", "at least one condition"),
        (HEAD + SELECTOR.replace("KEY", "vendor = 4318"), "vendor is 4318", "4 lower-case hex"),
        (HEAD + SELECTOR.replace("KEY", 'vendor = "10DE"'), "vendor is '10DE'", "4 lower-case hex"),
        (HEAD + SELECTOR.replace("KEY", 'device = "0"'), "device is '0'", "4 lower-case hex"),
        (HEAD + SELECTOR.replace("KEY", 'class = "3"'), "class is '3'", "2 to 6 lower-case hex"),
        (HEAD + SELECTOR.replace("KEY", 'address = "41:00.0"'), "address is", "DDDD:BB:DD.F"),
        (HEAD + SELECTOR.replace("KEY", "address = 41"), "address is 41", "DDDD:BB:DD.F"),
        (HEAD + SELECTOR.replace("KEY", "numa_node = -1"), "numa_node is -1", "or equal to 0"),
        (HEAD + SELECTOR.replace("KEY", 'product = ""'), "product is ''", "at least 1 character"),
        (HEAD + HANDLER.replace('"go"', '"c"'), "runtime is 'c'", "go, rust"),
        (HEAD + HANDLER.replace('"/k.toml"', '"k.toml"'), "config is 'k.toml'", "absolute path"),
        (HEAD + HANDLER.replace('"/k.toml"', '"/a/../k"'), "config is '/a/../k'", "without .."),
        (HEAD + HANDLER.replace("KEY", "pcie_root_ports = 33"), "ports is 33", "or equal to 32"),
        (HEAD + HANDLER.replace("KEY", "pcie_root_ports = 17"), "ports is 17", "at most 16"),
        (
            HEAD + HANDLER.replace('"go"', '"rust"').replace("KEY", "pcie_root_ports = 23"),
            "pcie_root_ports is 23",
            "at most 22",
        ),
        (
            HEAD + HANDLER.replace("KEY", 'hot_plug_vfio = "root-port"'),
            "kata.handler[1]",
            "exclude each other",
        ),
        (
            HEAD + HANDLER.replace('"go"', '"rust"').replace("KEY", 'hot_plug_vfio = "root-port"'),
            "kata.handler[1]",
            "of Kata's go runtime",
        ),
        (
            HEAD + HANDLER.replace("KEY", 'confidential = "tdx", kernel_params = ["a"]'),
            "kata.handler[1]",
            "would change the measurement of tdx guests",
        ),
        (
            HEAD + HANDLER.replace('"k"', '"kata-snp"').replace("KEY", 'kernel_params = ["a"]'),
            "kata.handler[1]",
            "would change the measurement of snp guests",
        ),
        (
            HEAD
            + HANDLER.replace(
                "KEY",
                'confidential = "snp", cold_plug_vfio = "no-port", hot_plug_vfio = "root-port"',
            ),
            "kata.handler[1]",
            "at their start only",
        ),
        (HEAD + HANDLER.replace("KEY", 'kernel_params = ["a b"]'), "kernel_params[1]", "no blanks"),
        (HEAD + HANDLER.replace("KEY", "memory_mib = 255"), "memory_mib is 255", "equal to 256"),
        (HEAD + HANDLER.replace("KEY", 'cold_plug_vfio = "x"'), "cold_plug_vfio", "root-port"),
        (HEAD + HANDLER.replace("KEY", 'vfio_mode = "x"'), "vfio_mode is 'x'", "guest-kernel"),
        (HEAD + HANDLER.replace("KEY", 'enable_annotations = ["("]'), "annotations[1]", "regular"),
        (HEAD + HANDLER.replace("KEY", "dial_timeout_s = 0"), "dial_timeout_s is 0", "equal to 1"),
        (HEAD + HANDLER.replace("KEY", 'confidential = "sev"'), "confidential", "snp, tdx, none"),
        (HEAD + HANDLER.replace("KEY", 'hypervisor = "fc"'), "kata.handler[1]", "qemu or clh"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(text: str, where: str, allowed: str) -> None:
    message = complaint(text.replace(", KEY", "").replace("KEY", ""))
    assert message.startswith("cannot use /etc/bp.toml: ")
    assert where in message
    assert allowed in message


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('socket = "run/s.sock"', "absolute path"),
        (f'socket = "/{"s" * 107}"', "at most 107 bytes and this one 108; choose a shorter one"),
        (f'socket = "/{"ü" * 60}"', "at most 107 bytes and this one 121"),
        ("socket_mode = 660", 'such as "0660"'),
        ('socket_mode = "0980"', 'such as "0660"'),
        ('cdi_directory = "/run/../cdi"', "without .."),
        (r'state_directory = "/a\u0000b"', "absolute path"),
        ("rescan_interval_s = 0", "greater than or equal to 1"),
        ("rescan_interval_s = nan", "or equal to"),
        ("rescan_interval_s = 61", "less than or equal to 60"),
        ("settle_s = inf", "less than or equal to 10"),
        ('settle_s = "1"', "a number"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(text: str, allowed: str) -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        settings_of(text)
    assert str(caught.value).startswith(f"cannot use agent.toml: {text.partition(' ')[0]} is ")
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("0.0.0.0:1", "0.0.0.0", 1), ("[fe80::1]:65535", "fe80::1", 65535)],  # noqa: S104
)
def test_metrics_are_served_where_the_settings_say(text: str, address: str, port: int) -> None:
    found = settings_of(f'[metrics]\nlisten = "{text}"')
    assert found.metrics == Endpoint(address=address, port=port)


@pytest.mark.parametrize(
    "text",
    [
        *('"9400"', '":9400"', '"localhost:9400"', '"::1:9400"', '"[127.0.0.1]:9400"', "9400"),
        *('"127.0.0.1"', '"127.0.0.1:"', '"127.0.0.1:0"', '"127.0.0.1:65536"', '"127.0.0.1:٣"'),
    ],
)
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidBlueprint, match=r"metrics.listen is .*expected an IP address and"):
        settings_of(f"[metrics]\nlisten = {text}")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (f'state_directory = "/{"s" * 100}"\n[kubernetes]', f"/{'s' * 100}/pod-resources.sock"),
        (
            f'[kubernetes]\nkubelet_directory = "/{"k" * 100}"',
            f"/{'k' * 100}/pod-resources/kubelet.sock",
        ),
    ],
    ids=["ours", "kubelet's"],
)
def test_a_folder_in_which_no_socket_can_be_asked_is_refused(text: str, path: str) -> None:
    with pytest.raises(InvalidBlueprint, match=f"the file: cannot ask {path}: a socket's path has"):
        settings_of(text)
    settings_of(text.replace("[kubernetes]", "").partition("kubelet")[0])


def test_kata_asks_kubelet_where_it_is_and_us_where_we_know_of_dra() -> None:
    moved = Kubernetes(kubelet_directory="/var/lib/k0s/kubelet")
    kubelet = "/var/lib/k0s/kubelet/pod-resources/kubelet.sock"
    ours = "/var/lib/kata-gpu/pod-resources.sock"
    assert Settings().pod_resources == PodResources()
    assert Settings(kubernetes=moved).pod_resources == PodResources(kubelet=kubelet, link=ours)
    without_api = Settings(kubernetes=replace(moved, api=False))
    assert without_api.pod_resources == PodResources(kubelet=kubelet)


def test_the_longest_socket_path_is_taken() -> None:
    assert len(settings_of(f'socket = "/{"s" * 106}"').socket) == 107


@pytest.mark.parametrize(
    ("what", "tables"),
    [("pool p", POOL.replace("]\n", ', {name = "p", mode = "ignore", select = [{class = "03"}]}]')),
     ("handler k", HANDLER.replace("]\n", ', {name = "k", runtime = "go", config = "/l"}]'))],
    ids=["pool", "handler"],
)  # fmt: skip
def test_two_of_one_name_are_refused(what: str, tables: str) -> None:
    assert f"{what} is there twice" in complaint(HEAD + tables.replace(", KEY", ""))


def test_a_long_value_is_cut() -> None:
    message = complaint(f'schema = 1\nversion = "{"x" * 10_000}"')
    assert "…" in message
    assert len(message) < 400


# Files


@pytest.mark.parametrize(
    "text",
    ["schema = ", "= 1", "schema = 1\nschema = 2", "[[pool", "a = 2024-02-30", "a = " + "9" * 5000],
    ids=["half", "no-key", "twice", "open", "date", "huge"],
)
def test_what_is_no_toml_is_refused_as_such(text: str) -> None:
    assert complaint(text).startswith("cannot use /etc/bp.toml: not TOML: ")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "{a = " * 5000])
def test_what_is_nested_without_end_is_refused(text: str) -> None:
    assert complaint(text) == "cannot use /etc/bp.toml: it is nested too deeply"


@pytest.mark.parametrize("load", [blueprint.load, agent_file.load])
def test_a_file_that_is_missing_is_named(tmp_path: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(InvalidBlueprint, match=r"cannot read .*none.toml: it does not exist"):
        load(tmp_path / "none.toml")


def test_a_folder_is_no_blueprint(tmp_path: Path) -> None:
    with pytest.raises(InvalidBlueprint, match=r"cannot read .*: Is a directory"):
        blueprint.load(tmp_path)


def test_a_file_that_is_not_utf_8_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b'version = "\xff"')
    with pytest.raises(InvalidBlueprint, match=r"cannot read .*b.toml: not UTF-8 at byte 11"):
        blueprint.load(tmp_path / "b.toml")


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(InvalidBlueprint, match="longer than 1048576 bytes"):
        blueprint.load(tmp_path / "b.toml")


_tomlish = st.lists(
    st.sampled_from(
        ["schema", "version", "pool", "select", "kata", "handler", "mode", "vendor", "=", "1", ".",
         '"host"', '"x"', "[", "]", "{", "}", "[[", "]]", ",", "\n", " ", "true", "nan", "07", "'"]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | _tomlish | _tomlish.map(lambda tail: HEAD + tail))
def test_whatever_is_written_it_is_a_blueprint_or_one_line_says_why_not(text: str) -> None:
    try:
        found = blueprint.parse(text)
    except InvalidBlueprint as error:
        message = str(error)
    else:
        message = f"cannot be else than {type(found).__name__}"
    assert message.startswith("cannot ")
    assert message.isprintable()
