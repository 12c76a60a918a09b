"""The manifests for Kubernetes: what kustomize renders, and its pods as containers on Docker.

There is no API server here. Two validators and the assertions below replace it.
"""

import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery_service.api.settings import Settings
from celery_service.brokers.queues import DEAD_LETTER_QUEUE, NAMES
from celery_service.config.environment import read_settings
from celery_service.lifecycle import health

from support.commands import attempt, run
from support.containers import require_engine
from support.kubernetes import (
    WORKLOADS,
    Cluster,
    Container,
    Manifest,
    cluster,
    containers_of,
    environment_of,
    expand,
    kustomize,
    named,
    of_kind,
    parse,
    pod_of,
    require_kubectl,
)
from support.project import Project, render
from support.render import File, Renderer, Tree, copy_template
from support.servers import require
from support.sources import variables_of
from support.space import Template, covering_set, read_space

TASKS = Path(__file__).with_name("pod_tasks.py")
ROOT = "deploy/kubernetes"
OVERLAYS = ("development", "production")
QUEUES = tuple(name for name in NAMES if name != DEAD_LETTER_QUEUE)
#: Seconds between the grace period of a worker and that of its pod.
MARGIN = 15
#: The soft time limit of a task in seconds: a worker isn't taken away sooner.
SOFT_LIMIT = 540
#: The versions of objects that kubernetes-validate has no schema of, and their documentation.
CUSTOM = {
    "ScaledObject": "keda.sh/v1alpha1",  # https://keda.sh/docs/2.18/reference/scaledobject-spec/
    "TriggerAuthentication": "keda.sh/v1alpha1",  # https://keda.sh/docs/2.18/concepts/authentication/
    "PodMonitor": "monitoring.coreos.com/v1",  # https://prometheus-operator.dev/docs/api-reference/api/
    "ExternalSecret": "external-secrets.io/v1",  # https://external-secrets.io/latest/api/externalsecret/
}
#: Checks of checkov that don't apply, and why.
NOT_CHECKED = {
    "CKV_K8S_35": "Secrets are variables: DATABASE_URL and others can't be read from a file",
}
NOT_CHECKED_IN_DEVELOPMENT = {
    "CKV_K8S_14": "images have no version: they are built on this machine",
    "CKV_K8S_43": "likewise, they have no digest",
    "CKV_K8S_15": "likewise, they can't be pulled",
    "CKV_K8S_22": "RabbitMQ writes to its own folders",
    "CKV_K8S_40": "the users of the servers' images are below 10000",
}
#: Variables that are no settings, and what they are for.
NOT_SETTINGS = {
    "QUEUE": "arguments and other variables contain it",
}
#: KEDA runs this on Redis: pkg/scalers/redis_scaler.go in v2.17.
COUNT = """
local name = redis.call('type', KEYS[1]).ok
local count = {zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen'}
return redis.call(count[name], KEYS[1])
"""


@dataclass(frozen=True)
class Rendered:
    """The objects of an overlay, for some answers."""

    answers: Mapping[str, Any]
    env_example: File
    overlay: str
    objects: list[Manifest]

    def workloads(self) -> Iterator[tuple[Manifest, Manifest]]:
        """Yield each workload with the specification of its pods."""
        for workload in of_kind(self.objects, *WORKLOADS):
            yield workload, pod_of(workload)

    def of_the_service(self) -> Iterator[tuple[Manifest, Manifest]]:
        """Yield the workloads that run the image of the service."""
        name = self.answers["distribution_name"]
        for workload, pod in self.workloads():
            if workload["metadata"].get("labels", {}).get("app.kubernetes.io/name") == name:
                yield workload, pod

    def workers(self) -> list[Manifest]:
        """Return the Deployments of workers."""
        return [each for each, _ in self.of_the_service() if component(each) == "worker"]


def component(workload: Manifest) -> str:
    return str(workload["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/component"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Rendered]:
    """Both overlays, for answers of which every two options take all values together."""
    require_kubectl()
    template = Template(copy_template(tmp_path_factory.mktemp("template")))
    given = {"include_docker": True, "include_kubernetes": True, "package_slug": "a_service"}
    combinations = read_space(template, given=given)
    renderer = Renderer(template, combinations)
    trees: dict[tuple[File, ...], Tree] = {}
    for combination in covering_set(combinations, 2):
        tree = renderer.render(combination)
        trees.setdefault(tuple(file for path, file in tree.files.items() if path.startswith(ROOT)), tree)
    assert len(trees) > 5
    found = []
    for number, tree in enumerate(trees.values()):
        folder = tree.write(tmp_path_factory.mktemp(f"tree{number}"))
        run("make", f"{ROOT}/development/secrets.env", cwd=folder)
        env_example = tree.files[".env.example"]
        found += [Rendered(tree.context, env_example, name, kustomize(folder / ROOT / name)) for name in OVERLAYS]
    return found


def tool(name: str) -> str:
    """Return the path of a program in the environment of these tests."""
    return str(Path(sys.executable).with_name(name))


def write(folder: Path, rendered: Sequence[Rendered]) -> list[str]:
    """Write the objects that Kubernetes itself knows to one file for each overlay. Equal ones are written once."""
    paths = []
    for overlay in OVERLAYS:
        objects = itertools.chain.from_iterable(each.objects for each in rendered if each.overlay == overlay)
        texts = {yaml.safe_dump(some): None for some in objects if some["kind"] not in CUSTOM}
        path = folder / f"{overlay}.yaml"
        path.write_text("---\n".join(texts))
        paths.append(str(path))
    return paths


# --- validators -------------------------------------------------------------------------------------------------------


def test_all_objects_match_the_schemas_of_kubernetes(rendered: list[Rendered], tmp_path: Path) -> None:
    said = run(tool("kubernetes-validate"), "--strict", *write(tmp_path, rendered))
    assert said.count(" passed for resource ") > 50


def test_checkov_finds_no_bad_practice(rendered: list[Rendered], tmp_path: Path) -> None:
    checkov = [tool("uv"), "tool", "run", "--quiet", "--from=checkov>=3.3,<4", "checkov"]
    # It has ninety dependencies: an environment of its own keeps them out of ours.
    require("checkov", None if attempt(*checkov[:-1], "python", "-c", "").returncode else checkov)
    write(tmp_path, rendered)
    options = ["--framework=kubernetes", "--compact", "--quiet", "--skip-download", "--output=json"]
    done = attempt(*checkov, *options, f"--directory={tmp_path}")
    results = json.loads(done.stdout[done.stdout.index("{") :])
    assert results["summary"]["passed"] > 500
    failed: dict[str, dict[str, str]] = {overlay: {} for overlay in OVERLAYS}
    for each in results["results"]["failed_checks"]:
        failed[Path(each["file_path"]).stem][each["check_id"]] = each["resource"]
    assert failed["production"].keys() == NOT_CHECKED.keys(), failed["production"]
    assert failed["development"].keys() == NOT_CHECKED.keys() | NOT_CHECKED_IN_DEVELOPMENT.keys(), failed["development"]


# --- pods -------------------------------------------------------------------------------------------------------------


def test_every_pod_fits_the_restricted_profile_and_has_no_token(rendered: list[Rendered]) -> None:
    for each in rendered:
        [namespace] = of_kind(each.objects, "Namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert all(some["metadata"].get("namespace") == namespace["metadata"]["name"] for some in each.objects[1:])
        for _, pod in each.workloads():
            assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
            assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            kinds = {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} if "volumes" in pod else set()
            assert kinds <= {"emptyDir", "persistentVolumeClaim"}
            for container in containers_of(pod):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert not security.keys() & {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"}
                assert security["readOnlyRootFilesystem"] is (container["name"] != "rabbitmq")
                assert container["resources"].keys() == {"requests", "limits"}
                assert not any("hostPort" in port for port in container.get("ports", []))


def test_each_queue_has_workers_that_stop_in_time_and_survive_a_drain(rendered: list[Rendered]) -> None:
    for each in rendered:
        workers = each.workers()
        queues = []
        for worker in workers:
            pod = pod_of(worker)
            [container] = pod["containers"]
            variables = environment_of(container, each.objects)
            arguments = [expand(part, variables) for part in container["args"]]
            [queue] = [part.removeprefix("--queues=") for part in arguments if part.startswith("--queues=")]
            queues.append(queue)
            assert f"--hostname={queue}@%h" in arguments
            assert worker["metadata"]["name"].endswith(f"-{queue.replace('_', '-')}")
            grace = int(variables["CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT"])
            assert pod["terminationGracePeriodSeconds"] == grace + MARGIN
            assert "replicas" not in worker["spec"]
            labels = worker["spec"]["template"]["metadata"]["labels"]
            assert worker["spec"]["selector"]["matchLabels"] == labels
            for spread in pod["topologySpreadConstraints"]:
                assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
                assert spread["labelSelector"]["matchLabels"]["queue"] == queue
            [budget] = [
                some
                for some in of_kind(each.objects, "PodDisruptionBudget")
                if some["spec"]["selector"]["matchLabels"].items() <= labels.items()
            ]
            assert budget["spec"]["maxUnavailable"] == 1
            assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert sorted(queues) == sorted(QUEUES)
        # Each budget belongs to one Deployment: with several, Kubernetes refuses to evict.
        assert len(of_kind(each.objects, "PodDisruptionBudget")) >= len(workers)


def test_there_is_one_beat_that_is_never_doubled(rendered: list[Rendered]) -> None:
    for each in rendered:
        beats = [some for some, pod in each.of_the_service() if "beat" in pod["containers"][0]["args"]]
        assert len(beats) == each.answers["use_beat"]
        for beat in beats:
            assert beat["spec"]["replicas"] == 1
            assert beat["spec"]["strategy"] == {"type": "Recreate"}
            [volume] = [some for some in pod_of(beat)["volumes"] if some["name"] == "data"]
            assert named(each.objects, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            scaled = {some["spec"]["scaleTargetRef"]["name"] for some in of_kind(each.objects, "ScaledObject")}
            assert beat["metadata"]["name"] not in scaled


def test_pods_wait_for_the_job_that_migrates(rendered: list[Rendered]) -> None:
    for each in rendered:
        jobs = of_kind(each.objects, "Job")
        assert len(jobs) == each.answers["use_db"]
        waiting = [pod for _, pod in each.of_the_service() if "initContainers" in pod]
        others = [pod for some, pod in each.of_the_service() if some["kind"] != "Job"]
        assert waiting == (others if jobs else [])
        assert all(pod_of(job)["containers"][0]["args"] == ["alembic", "upgrade", "head"] for job in jobs)


def test_probes_and_commands_are_in_the_image(rendered: list[Rendered]) -> None:
    for each in rendered:
        for workload, pod in each.of_the_service():
            for before in pod.get("initContainers", []):
                assert before["args"][:2] == ["python", "-m"]
                assert find_spec(before["args"][2])
            for container in pod["containers"]:
                probes = {name: container[name] for name in container if name.endswith("Probe")}
                names = {"startupProbe", "livenessProbe", "readinessProbe"}
                assert probes.keys() == (names if component(workload) in {"worker", "beat", "api"} else set())
                for name, probe in probes.items():
                    # It takes 50 ms, and longer when the CPU is throttled.
                    assert probe["timeoutSeconds"] >= 5
                    if component(workload) == "api":
                        paths = {"path": "/health/ready" if name == "readinessProbe" else "/health/live"}
                        assert probe["httpGet"] == {**paths, "port": "http"}
                        continue
                    *command, service, what = probe["exec"]["command"]
                    assert command == ["python", "-m", health.__name__]
                    assert service == each.answers["package_slug"]
                    ready = name == "readinessProbe"
                    assert what == ("beat" if component(workload) == "beat" else "ready" if ready else "live")
                    assert what in health.CHOICES


def test_every_variable_is_known(rendered: list[Rendered]) -> None:
    for each in rendered:
        known = variables_of(each.env_example) | NOT_SETTINGS.keys()
        for _, pod in each.of_the_service():
            for container in containers_of(pod):
                variables = environment_of(container, each.objects)
                assert not any("$(" in value for value in variables.values())
                # It refuses names and values that Celery doesn't have.
                read_settings(variables)
                others = {name for name in variables if not name.startswith("CELERY_")}
                assert others <= known, others - known
        if each.overlay == "development":
            assert "CELERY_BROKER_URL" in variables


def test_production_names_images_by_digest_and_contains_no_secret(rendered: list[Rendered]) -> None:
    for each in rendered:
        if each.overlay == "production":
            for _, pod in each.workloads():
                assert all(re.search(r"@sha256:[0-9a-f]{64}$", container["image"]) for container in containers_of(pod))
            assert not of_kind(each.objects, "Secret", "StatefulSet")


def test_pods_reach_their_servers_and_names_only(rendered: list[Rendered]) -> None:
    for each in rendered:
        policy = named(each.objects, "NetworkPolicy", each.answers["distribution_name"])["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert all(rule["from"] for rule in policy["ingress"])
        allowed = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        assert {53, 6379} <= allowed
        servers = [some for some in of_kind(each.objects, "Service") if "server" in some["spec"]["selector"]]
        assert {port["port"] for service in servers for port in service["spec"]["ports"]} <= allowed
        into = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert (9808 in into) is each.answers["use_prometheus"]


def test_the_api_has_a_service_and_stops_after_its_last_requests(rendered: list[Rendered]) -> None:
    for each in rendered:
        apis = [(some, pod) for some, pod in each.of_the_service() if component(some) == "api"]
        assert len(apis) == each.answers["use_api"]
        for api, pod in apis:
            labels = api["spec"]["template"]["metadata"]["labels"]
            for kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
                spec = named(each.objects, kind, api["metadata"]["name"])["spec"]
                selector = spec.get("podSelector", spec.get("selector"))
                assert selector.get("matchLabels", selector).items() <= labels.items()
            [container] = pod["containers"]
            seconds = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
            shutdown: int = Settings.model_fields["shutdown_timeout"].default
            assert pod["terminationGracePeriodSeconds"] == seconds + shutdown + 5
            variables = environment_of(container, each.objects)
            assert variables["API_HOST"] == "0.0.0.0"
            assert each.overlay == "production" or len(variables["API_KEY"]) == 32


# --- objects that others define ---------------------------------------------------------------------------------------


def test_keda_counts_messages_of_running_tasks_too(rendered: list[Rendered]) -> None:
    for each in rendered:
        scaled = of_kind(each.objects, "ScaledObject")
        assert len(scaled) == (len(QUEUES) if each.overlay == "production" else 0)
        for some in scaled:
            assert some["apiVersion"] == CUSTOM["ScaledObject"]
            spec = some["spec"]
            assert spec.keys() <= {
                *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"),
                *("advanced", "triggers"),
            }
            [worker] = [one for one in each.workers() if one["metadata"]["name"] == spec["scaleTargetRef"]["name"]]
            variables = environment_of(pod_of(worker)["containers"][0], each.objects)
            queue = variables["QUEUE"]
            assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
            assert spec["minReplicaCount"] > 0 or spec["cooldownPeriod"] > SOFT_LIMIT
            down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
            assert down["stabilizationWindowSeconds"] > SOFT_LIMIT
            assert all(isinstance(value, str) for one in spec["triggers"] for value in one["metadata"].values())
            triggers = {one.get("name", ""): one for one in spec["triggers"]}
            metadata = {name: one["metadata"] for name, one in triggers.items()}
            if each.answers["use_redis"]:
                options = json.loads(variables["CELERY_BROKER_TRANSPORT_OPTIONS"])
                names = {name: one["listName"] for name, one in metadata.items()}
                assert names == {"waiting": queue, "running": options["unacked_index_key"]}
                assert options["unacked_key"] != options["unacked_index_key"]
                modifiers = spec["advanced"]["scalingModifiers"]
                assert modifiers["formula"] == "waiting + running"
                assert modifiers["target"] == metadata["waiting"]["listLength"]
            else:
                assert metadata[""]["queueName"] == queue
                # Of the two protocols, AMQP doesn't know how many messages are unacknowledged.
                assert metadata[""]["protocol"] == "http"
                assert metadata[""]["mode"] == "QueueLength"
                assert metadata[""]["excludeUnacknowledged"] == "false"
            for one in spec["triggers"]:
                assert one["type"] == each.answers["broker"]
                found = named(each.objects, "TriggerAuthentication", one["authenticationRef"]["name"])
                assert found["apiVersion"] == CUSTOM["TriggerAuthentication"]
                parameters = {secret["parameter"] for secret in found["spec"]["secretTargetRef"]}
                assert parameters == ({"address", "password", "tls"} if each.answers["use_redis"] else {"host"})


def test_prometheus_finds_the_pods_that_have_metrics(rendered: list[Rendered]) -> None:
    for each in rendered:
        monitors = of_kind(each.objects, "PodMonitor")
        assert len(monitors) == (each.answers["use_prometheus"] and each.overlay == "production")
        serving = set()
        for workload, pod in each.of_the_service():
            for container in pod["containers"]:
                for port in container.get("ports", []):
                    if port["name"] == "metrics":
                        serving.add(component(workload))
                        assert environment_of(container, each.objects)["METRICS_HOST"] == "0.0.0.0"
        for monitor in monitors:
            assert monitor["apiVersion"] == CUSTOM["PodMonitor"]
            assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} == {"metrics"}
            [expression] = monitor["spec"]["selector"]["matchExpressions"]
            assert set(expression["values"]) == serving
            assert monitor["spec"]["selector"]["matchLabels"] == {
                "app.kubernetes.io/name": each.answers["distribution_name"]
            }


# --- what a user does -------------------------------------------------------------------------------------------------

ANSWERS = {"package_slug": "a_pod", "include_kubernetes": True, "include_sqlalchemy": True, "include_fastapi": True}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return render(tmp_path_factory.mktemp("kubernetes") / "project", ANSWERS)


def test_make_generates_passwords_once_and_refuses_the_image_of_the_template(project: Project) -> None:
    require_kubectl()
    first = run("make", "--silent", "kubernetes", cwd=project.folder)
    files = [project.folder / ROOT / "development" / name for name in ("secrets.env", "servers.env")]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 2
    assert run("make", "--silent", "kubernetes", cwd=project.folder) == first
    assert len(set(re.findall(r"PASSWORD=(\w{32})$", files[1].read_text(), re.MULTILINE))) == 2
    ignored = run("git", "init", "--quiet", cwd=project.folder) + run(
        "git", "status", "--porcelain", "--untracked-files=all", cwd=project.folder
    )
    assert "secrets.env" not in ignored

    refused = attempt("make", "--silent", "kubernetes", "OVERLAY=production", cwd=project.folder)
    assert refused.returncode != 0
    line = "production/kustomization.yaml has no image yet: write its newName and digest there."
    assert refused.stdout.splitlines()[0].endswith(line)
    overlay = project.folder / ROOT / "production" / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("0" * 64, "12" * 32))
    objects = parse(run("make", "--silent", "kubernetes", "OVERLAY=production", cwd=project.folder))
    [container] = pod_of(named(objects, "Deployment", "a-pod-beat"))["containers"]
    assert container["image"] == f"registry.example.com/a-pod@sha256:{'12' * 32}"


def test_make_finds_a_misspelt_field(project: Project, tmp_path: Path) -> None:
    require_kubectl()
    folder = tmp_path / "project"
    shutil.copytree(project.folder, folder)
    assert run("make", "--silent", "check-kubernetes", cwd=folder) == ""
    deployment = folder / ROOT / "base/worker/deployment.yaml"
    deployment.write_text(deployment.read_text().replace("minReadySeconds:", "minReadySecond:"))
    done = attempt("make", "--silent", "check-kubernetes", cwd=folder)
    assert done.returncode != 0
    assert "minReadySecond" in done.stdout


def test_without_kubectl_make_says_so(project: Project, tmp_path: Path) -> None:
    for name in ("sh", "make", "grep"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = attempt("make", "kubernetes", cwd=project.folder, PATH=str(tmp_path))
    assert done.returncode != 0
    assert done.stdout.startswith("kubectl is not installed: https://")


def test_the_examples_of_the_page_change_grace_period_and_replicas(project: Project, tmp_path: Path) -> None:
    require_kubectl()
    page = (project.folder / "docs/dev/kubernetes.md").read_text()
    examples = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    shutil.copytree(project.folder / ROOT, tmp_path / "kubernetes")
    kustomization = tmp_path / "kubernetes/mine/kustomization.yaml"
    kustomization.parent.mkdir()
    kustomization.write_text(yaml.safe_dump({"resources": ["../production"], **examples[0], **examples[1]}))
    objects = kustomize(kustomization.parent)
    for queue in QUEUES:
        worker = named(objects, "Deployment", f"a-pod-worker-{queue.replace('_', '-')}")
        pod = pod_of(worker)
        grace = int(environment_of(pod["containers"][0], objects)["CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT"])
        assert grace == 300
        assert pod["terminationGracePeriodSeconds"] == grace + MARGIN
    assert named(objects, "Deployment", "a-pod-worker-default")["spec"]["replicas"] == 4


def test_the_example_of_external_secrets_makes_the_secrets_that_are_missing(project: Project) -> None:
    objects = parse((project.folder / ROOT / "examples/external-secret.yaml").read_text())
    assert {each["apiVersion"] for each in objects} == {CUSTOM["ExternalSecret"]}
    assert {each["spec"]["target"]["name"] for each in objects} == {"a-pod", "a-pod-keda"}
    fields = {"refreshInterval", "secretStoreRef", "target", "dataFrom"}
    assert all(each["spec"].keys() == fields for each in objects)


def test_long_names_fit(tmp_path: Path) -> None:
    require_kubectl()
    slug = "a" * 40
    folder = render(tmp_path / "project", {**ANSWERS, "package_slug": slug}).folder
    for each in kustomize(folder / ROOT / "production"):
        assert len(each["metadata"]["name"]) <= 63, each["metadata"]["name"]
        assert all(len(value) <= 63 for value in each["metadata"]["labels"].values())


# --- the pods as containers -------------------------------------------------------------------------------------------

#: The image of PostgreSQL that .ci/engine makes changes owners, as only root can. Docker's own runs as any user.
AS_ROOT = ("--user=0:0", *(f"--cap-add={name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")))
#: The grace period in seconds, shorter than by default.
GRACE = 8


@pytest.fixture(scope="module")
def pods(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The pods of `development`, with their image and their running servers."""
    require_engine()
    folder = tmp_path_factory.mktemp("pods") / "project"
    shutil.copytree(project.folder, folder)
    shutil.copy(TASKS, folder / project.slug / "tasks" / "pods.py")
    overlay = folder / ROOT / "mine" / "kustomization.yaml"
    overlay.parent.mkdir()
    literals = [f"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT={GRACE}"]
    settings = {"name": "a-pod", "behavior": "merge", "literals": literals}
    overlay.write_text(yaml.safe_dump({"resources": ["../development"], "configMapGenerator": [settings]}))
    objects = parse(run("make", "--silent", "kubernetes", "OVERLAY=mine", cwd=folder))
    run("make", "image", cwd=folder, timeout=600)
    try:
        with cluster(objects) as made:
            yield made
    finally:
        attempt("docker", "rmi", "--force", "a-pod")


def lines(redis: Container, *command: str) -> list[str]:
    """Ask Redis."""
    return redis.run("redis-cli", *command).split()


def test_pods_start_in_order_run_tasks_and_lose_none_at_a_stop(pods: Cluster, project: Project) -> None:
    redis, database = pods.start("StatefulSet", "redis"), pods.start("StatefulSet", "db", "db", *AS_ROOT)
    # The pod waits for the database, then for its migrations.
    waiting = pods.start("Deployment", "a-pod-worker-default", "wait-for-migrations")
    redis.wait_for("readinessProbe")
    database.wait_for("readinessProbe")
    waiting.wait_for_log("waiting for migrations: the database is at none")
    assert pods.start("Job", "a-pod-migrate").wait_for_end() == 0
    assert waiting.wait_for_end() == 0
    # A newer version has migrated it: the older one starts again, for example after `kubectl rollout undo`.
    database.run("psql", "--username=a_pod", "--command=update alembic_version set version_num = 'newer'")
    assert pods.start("Deployment", "a-pod-worker-default", "wait-for-migrations").wait_for_end() == 0

    beat = pods.start("Deployment", "a-pod-beat")
    worker = pods.start("Deployment", "a-pod-worker-default")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        worker.wait_for(probe)
    assert worker.run("id", "-u").strip() == "10001"
    assert "default@" in worker.logs()
    header = "from a_pod.celery import celery\nfrom a_pod.tasks.pods import work\n"
    assert worker.run("python", "-c", header + "print(work.delay('fast', 0).get(timeout=30))") == "fast\n"

    api = pods.start("Deployment", "a-pod-api")
    ask = (
        "import http.client, sys\nconnection = http.client.HTTPConnection('a-pod-api', 8000, timeout=10)\n"
        "connection.request('GET', sys.argv[1])\nprint(connection.getresponse().status)"
    )
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = api.spec[probe]["httpGet"]["path"]
        api.wait(lambda path=path: "200" in worker.attempt("python", "-c", ask, path), f"{path} of the API")
    assert worker.run("python", "-c", ask, "/api/v1/ops") == "401\n"
    assert api.stop(20) == 0

    beat.wait_for("livenessProbe")
    worker.wait_for_log("Hello World!")
    assert beat.stop(MARGIN) == 0

    # Two tasks run, and don't fit into the grace period. Three wait.
    keys = [f"task{number}" for number in range(5)]
    send = header + "".join(
        f"work.delay({key!r}, {3 * GRACE if number < 2 else 0})\n" for number, key in enumerate(keys)
    )
    worker.run("python", "-c", send)
    worker.wait(lambda: lines(redis, "hlen", "runs") == ["3"], "two tasks to run")
    production = kustomize(project.folder / ROOT / "production")
    triggers = named(production, "ScaledObject", "a-pod-worker-default")["spec"]["triggers"]
    counted = {
        trigger["name"]: int(redis.run("redis-cli", "eval", COUNT, "1", trigger["metadata"]["listName"]))
        for trigger in triggers
    }
    assert counted["running"] >= 2
    assert sum(counted.values()) == len(keys)

    assert worker.stop(GRACE + MARGIN) == 0
    assert lines(redis, "llen", "default") == [str(len(keys))]
    assert lines(redis, "exists", "unacked.default", "unacked_index.default") == ["0"]

    second = pods.start("Deployment", "a-pod-worker-default")
    second.wait(lambda: {*keys} <= {*lines(redis, "lrange", "ended", "0", "-1")}, "the tasks to end")
    assert second.stop(GRACE + MARGIN) == 0
    assert lines(redis, "keys", "unacked*") == []
