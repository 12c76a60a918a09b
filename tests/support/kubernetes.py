"""Manifests as kustomize renders them, and pods of them as containers on Docker.

A container gets what a pod's has: command, environment, user, mounts, limits and probes. There is no API server.
"""

import base64
import contextlib
import functools
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from support.commands import attempt, run
from support.servers import require, wait_until

Manifest = dict[str, Any]

#: Kinds that pods come from.
WORKLOADS = ("Deployment", "StatefulSet", "Job")


def require_kubectl() -> str:
    """Return the path of kubectl, or skip the test; with REQUIRE_SERVICES=1, fail it."""
    return require("kubectl", shutil.which("kubectl"))


def kustomize(folder: Path) -> list[Manifest]:
    """Return the objects of an overlay."""
    return parse(run(require_kubectl(), "kustomize", str(folder)))


def parse(text: str) -> list[Manifest]:
    """Return the objects of a text."""
    return [each for each in yaml.safe_load_all(text) if each]


def of_kind(objects: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Return the objects of some kinds."""
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return one object."""
    [found] = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pod_of(workload: Manifest) -> Manifest:
    """Return the specification of its pods."""
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def containers_of(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod, those that run first included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment_of(container: Manifest, objects: Sequence[Manifest]) -> dict[str, str]:
    """Return the variables of a container, with ConfigMaps and Secrets resolved.

    A Secret that isn't among the objects is created by somebody else, and left out.
    """
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        [reference] = source.values()
        kind = {"configMapRef": "ConfigMap", "secretRef": "Secret"}[next(iter(source))]
        for each in of_kind(objects, kind):
            if each["metadata"]["name"] == reference["name"]:
                variables |= _data(each)
    for variable in container.get("env", []):
        if "value" in variable:
            variables[variable["name"]] = expand(variable["value"], variables)
        else:
            key = variable["valueFrom"]["secretKeyRef"]
            variables[variable["name"]] = _data(named(objects, "Secret", key["name"]))[key["key"]]
    return variables


def _data(source: Manifest) -> dict[str, str]:
    data: dict[str, str] = source.get("data", {})
    if source["kind"] == "Secret":
        return {name: base64.b64decode(value).decode() for name, value in data.items()}
    return data


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does: what isn't known stays."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), text)


@functools.cache
def _mebibytes(quantity: str) -> str:
    return quantity.replace("Gi", "g").replace("Mi", "m")


@dataclass(kw_only=True)
class Cluster:
    """Containers of the pods of an overlay, on a network of their own."""

    objects: list[Manifest]
    network: str = field(default_factory=lambda: f"pods-{secrets.token_hex(4)}")
    started: list[str] = field(default_factory=list)

    def start(self, kind: str, name: str, container: str = "", *extra: str) -> "Container":
        """Start a container of a workload: its first one, or one that runs before it."""
        pod = pod_of(named(self.objects, kind, name))
        [spec] = [each for each in containers_of(pod) if each["name"] == (container or pod["containers"][0]["name"])]
        variables = environment_of(spec, self.objects)
        unique = f"{name}-{spec['name']}-{secrets.token_hex(2)}"
        options = [f"--name={unique}", f"--hostname={unique}", f"--network={self.network}", f"--network-alias={name}"]
        options += _security(pod, spec)
        for variable, value in variables.items():
            options += ["--env", f"{variable}={value}"]
        limits = spec["resources"]["limits"]
        options += [f"--cpus={limits['cpu'].replace('500m', '0.5')}", f"--memory={_mebibytes(limits['memory'])}"]
        # The user of a pod can write to its volumes, because of fsGroup.
        owner = "uid={runAsUser},gid={runAsGroup}".format(**pod["securityContext"])
        options += [f"--tmpfs={mount['mountPath']}:{owner},exec" for mount in spec.get("volumeMounts", [])]
        command = [expand(part, variables) for part in spec["args"]] if "args" in spec else []
        run("docker", "run", "--detach", *options, *extra, spec["image"], *command)
        self.started.append(unique)
        return Container(name=unique, spec=spec)


def _security(pod: Manifest, spec: Manifest) -> list[str]:
    of_pod, of_container = pod["securityContext"], spec["securityContext"]
    options = [f"--user={of_pod['runAsUser']}:{of_pod['runAsGroup']}"]
    options += [f"--cap-drop={name}" for name in of_container["capabilities"]["drop"]]
    if of_container["readOnlyRootFilesystem"]:
        options.append("--read-only")
    if not of_container["allowPrivilegeEscalation"]:
        options.append("--security-opt=no-new-privileges")
    if pod.get("shareProcessNamespace"):
        options.append("--init")
    return options


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container of a pod."""

    name: str
    spec: Manifest

    def run(self, *command: str) -> str:
        """Run a command in it."""
        return run("docker", "exec", self.name, *command)

    def attempt(self, *command: str) -> str:
        """Run a command in it, whether it fails or not, and return what it prints."""
        return attempt("docker", "exec", self.name, *command).stdout

    def succeeds(self, *command: str) -> bool:
        """Run a command in it, and return whether it succeeds."""
        return attempt("docker", "exec", self.name, *command).returncode == 0

    def wait_for(self, kind: str) -> None:
        """Wait until a probe that runs a command succeeds."""
        self.wait(lambda: self.succeeds(*self.spec[kind]["exec"]["command"]), f"the {kind} of {self.name}")

    def wait_for_log(self, text: str) -> None:
        """Wait until it has printed this."""
        self.wait(lambda: text in self.logs(), f"{text!r} from {self.name}")

    def wait(self, condition: Any, what: str, seconds: float = 60) -> None:
        """Wait for a condition that asks the engine. Print the log if it stays away."""
        try:
            wait_until(condition, seconds, what, longest_pause_seconds=0.5)
        except TimeoutError:
            print(self.logs())
            raise

    def logs(self) -> str:
        """Return what it has printed."""
        return attempt("docker", "logs", self.name).stdout

    def stop(self, seconds: int) -> int:
        """Stop it as Kubernetes does: SIGTERM, and SIGKILL after the grace period. Return its status."""
        run("docker", "stop", f"--timeout={seconds}", self.name)
        return self.wait_for_end()

    def wait_for_end(self) -> int:
        """Wait until it has ended, and return its status."""
        return int(run("docker", "wait", self.name, timeout=90))


@contextlib.contextmanager
def cluster(objects: list[Manifest]) -> Iterator[Cluster]:
    """Have a network for the pods of an overlay, and remove all containers at the end."""
    made = Cluster(objects=objects)
    run("docker", "network", "create", made.network)
    try:
        yield made
    finally:
        if made.started:
            attempt("docker", "rm", "--force", "--volumes", *made.started)
        attempt("docker", "network", "rm", made.network)
