"""The files of `clusters/`, as far as they can be judged without a cluster."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from raysearch.cli import app

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"


def pinned(package):
    return re.search(rf"^{package}==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)


def ray_cluster_spec(name):
    document = yaml.safe_load((CLUSTERS / "kuberay" / name).read_text())
    assert document["apiVersion"] == "ray.io/v1"
    kind = {"cluster.yaml": "RayCluster", "job.yaml": "RayJob"}[name]
    assert document["kind"] == kind
    return document["spec"] if kind == "RayCluster" else document["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml"])
def test_what_the_operator_refuses_is_not_in_the_files(name):
    spec = ray_cluster_spec(name)
    assert spec["rayVersion"] == pinned("ray")
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0), "token mode needs it"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert len({group.get("groupName") for group in groups}) == len(groups)
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert container["image"] == f"REGISTRY/raysearch:{spec['rayVersion']}-py311"
            assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if spec.get("enableInTreeAutoscaling"):
        assert spec["autoscalerOptions"]["version"] == "v2"


def test_the_charts_values_make_the_cluster_of_the_plain_file():
    values = yaml.safe_load((CLUSTERS / "kuberay" / "values.yaml").read_text())
    # The chart takes no notice of a key that it does not know.
    assert set(values) == {"fullnameOverride", "image", "common", "head", "worker", "service"}
    spec = ray_cluster_spec("cluster.yaml")
    head, worker = values["head"], values["worker"]
    image = f"{values['image']['repository']}:{values['image']['tag']}"
    secret = {"name": values["fullnameOverride"], "key": "auth_token"}
    token = [
        {"name": "RAY_AUTH_MODE", "value": spec["authOptions"]["mode"]},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
    ]
    assert values["common"]["containerEnv"] == token
    assert head.pop("autoscalerOptions") == {**spec["autoscalerOptions"], "env": token}
    (worker_group,) = spec["workerGroupSpecs"]
    for part, group in ((head, spec["headGroupSpec"]), (worker, worker_group)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == image
        assert part.pop("resources") == container["resources"]
        assert part.pop("tolerations", None) == pod.get("tolerations")
        assert part.pop("rayStartParams") == group["rayStartParams"]
    assert head == {name: spec[name] for name in ("rayVersion", "enableInTreeAutoscaling")}
    assert worker == {name: worker_group[name] for name in worker}
    assert set(worker) == {"groupName", "replicas", "minReplicas", "maxReplicas"}


def test_a_job_brings_its_own_cluster_and_its_script_gets_what_it_asks_for():
    spec = yaml.safe_load((CLUSTERS / "kuberay" / "job.yaml").read_text())["spec"]
    # The operator refuses backoffLimit together with clusterSelector.
    assert "clusterSelector" not in spec
    assert spec["submissionMode"] == "K8sJobMode"
    script = CLUSTERS / "kuberay" / "run.sh"
    assert spec["entrypoint"].split() == ["bash", f"/home/ray/raysearch/{script.relative_to(ROOT)}"]
    (head,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    required = set(re.findall(r'"\$\{(\w+):\?', script.read_text()))
    assert required == {entry["name"] for entry in head["env"]}
    assert all(isinstance(entry["value"], str) for entry in head["env"])


def test_the_image_has_the_ray_that_is_pinned():
    text = (CLUSTERS / "kuberay" / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned('ray')}-py311-gpu" in text
    assert f"REGISTRY/raysearch:{pinned('ray')}-py311" in text


@pytest.mark.process
def test_the_image_is_built_as_a_linter_wants_it():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, CLUSTERS / "kuberay" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["on-premises", "aws"])
def test_rays_launcher_accepts_its_files(name):
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray moved its check of these files")
    config = yaml.safe_load((CLUSTERS / "ray-up" / f"{name}.yaml").read_text())
    for key, commands in config.items():
        if key.endswith("_start_ray_commands"):
            assert all("RAY_AUTH_MODE=token" in line for line in commands if "ray start" in line)
    assert "~/.ray/auth_token" in config["file_mounts"]
    util.validate_config(util.prepare_config(config))
    with pytest.raises(Exception, match="max_wrokers"):
        util.validate_config(util.prepare_config({**config, "max_wrokers": 3}))


@pytest.mark.process
@pytest.mark.parametrize("path", ["slurm/run.sbatch", "kuberay/run.sh"])
def test_the_shell_reads_the_scripts(path):
    assert subprocess.run(["bash", "-n", CLUSTERS / path]).returncode == 0


@pytest.mark.process
@pytest.mark.parametrize("path", ["slurm/run.sbatch", "kuberay/run.sh"])
@pytest.mark.parametrize("is_known", [False, True])
def test_the_scripts_ask_for_the_run_and_resume_a_known_one(tmp_path, path, is_known):
    """Run with stand-ins for the cluster's commands, which note what they are called with."""
    calls = tmp_path / "calls"
    bodies = {
        "raysearch": f'[ "$1" = status ] && exit {0 if is_known else 2}\nprintf "%s\\n" "$@" > {calls}',
        "scontrol": "echo node1; echo node2",
        "srun": 'while [ "$1" != -- ]; do shift; done; shift; "$@"',
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    settings = {
        "TASK": "t:make",
        "STORAGE": "/shared/a b",
        "BUDGET": "avg_bits<=4",
        "RUN_ID": "r",
        "WORKERS": "16",
    }
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), **settings, **slurm}
    subprocess.run(["bash", CLUSTERS / path], env=environment, check=True)
    words = calls.read_text().splitlines()
    assert words[:2] == ["run", "t:make"]
    options = dict(zip(words[2:-1:2], words[3::2], strict=False))
    expected = {"--storage": "/shared/a b", "--budget": "avg_bits<=4", "--run-id": "r", "--workers": "16"}
    assert {name: options.get(name) for name in expected} == expected
    assert ("--resume" in words) == is_known


def test_a_job_on_aws_is_started_by_the_python_that_has_raysearch():
    (setup,) = yaml.safe_load((CLUSTERS / "ray-up" / "aws.yaml").read_text())["setup_commands"]
    (submit,) = re.findall("raysearch submit .*s3://.*", (CLUSTERS / "ray-up" / "README.md").read_text())
    assert submit.rpartition("--python ")[2].split()[0] == setup.split()[0]


def test_every_readme_has_its_commands():
    commands = get_command(app).commands
    for folder in ("kuberay", "ray-up", "slurm"):
        text = (CLUSTERS / folder / "README.md").read_text()
        blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
        assert blocks
        assert all(len(block.strip().splitlines()) == 3 for block in blocks)
        called = re.findall(r"raysearch (submit|wait|retrieve|status|run)\b([^|&\n]*)", "".join(blocks))
        assert called
        for name, options in called:
            known = {option for parameter in commands[name].params for option in parameter.opts}
            assert set(re.findall(r"(?<=\s)--[\w-]+", options)) <= known, name
        for path in re.findall(r"clusters/[\w./-]+\.\w+", text):
            assert (ROOT / path).is_file(), path
