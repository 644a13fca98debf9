"""`--model DIR --data FILE`: a directory by a text, and what the command line says of it."""

import re

import pytest

from raysearch.errors import ConfigError
from raysearch.huggingface.by_name import option_names, spec_of
from raysearch.huggingface.kinds import TASK_KINDS
from raysearch.task import load_task
from tests.support.command_line import document, run_command
from tests.support.model_directories import words

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "a corpus & more.txt"
    file.write_text(words(400))
    return file


def test_a_text_makes_the_task_again(llama, corpus):
    options = ["window=11", f"test_text={corpus}", "allow_pickle=true"]
    spec = spec_of(str(llama), [str(corpus), str(corpus)], "causal-lm", options)
    task = load_task(spec)
    windows = task.calibration.columns["input_ids"]
    assert windows.shape == (72, 11)
    assert windows[0].tolist() == windows[40].tolist()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["windw=3"], r"--with 'windw=3' cannot be read; write NAME=VALUE with one of validation_text, "),
        (["window"], "--with 'window' cannot be read"),
        (["window=long"], "--with window=long: the value must be a whole number"),
        (["allow_pickle=perhaps"], "must be true or false"),
    ],
)
def test_options_that_do_not_fit_are_refused(llama, corpus, options, part):
    with pytest.raises(ConfigError, match=part):
        spec_of(str(llama), [str(corpus)], "causal-lm", options)


def test_a_path_that_would_be_parted_is_refused(llama):
    with pytest.raises(ConfigError, match="has a ':' in its name"):
        spec_of(str(llama), ["texts/a:b.txt"], "causal-lm")


def test_every_kind_may_be_asked_for_what_it_takes():
    for kind in TASK_KINDS:
        assert {"trust_remote_code", "allow_pickle"} <= set(option_names(kind))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "there is no task: give TASK"),
        (["task.py:make", "--model", "dir"], "both the TASK 'task.py:make' and --model 'dir'"),
        (["task.py:make", "--data", "x"], "--data, --task and --with belong to --model"),
        (["--model", "dir"], "--model 'dir' needs data"),
        (
            ["--model", "dir", "--data", "x", "--task", "poetry"],
            "--task 'poetry' is unknown; known: causal-lm",
        ),
        (["--model", "dir", "--data", "x"], "the model directory '.*dir' does not exist"),
    ],
)
def test_what_the_command_line_refuses(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("run", *arguments, "--budget", "avg_bits<=4", "--json")
    assert done.returncode == 2
    assert re.search(part, document(done)["error"]["message"])
    assert not list(tmp_path.iterdir())


def test_a_directory_and_a_text_become_a_quantized_model(llama, corpus, tmp_path):
    sets = [
        "search.num_trials=2",
        "sensitivity.relative_error=1000",
        "rounding.refine_steps=2",
        'export.targets=["packed"]',
    ]
    done = run_command(
        "run", "--model", llama, "--data", corpus, "--with", "window=11", "--budget", "avg_bits<=4",
        "--storage", tmp_path, "--run-id", "lm", "--workers", 0, "--json",
        *[part for text in sets for part in ("--set", text)],
    )  # fmt: skip
    result = document(done)
    assert done.returncode == 0
    assert set(result["float_metrics"]) == {"divergence", "agreement", "perplexity"}
    # The run knows what it was of, and takes it again.
    again = run_command(
        "resolve", "lm", "--budget", "avg_bits<=5", "--storage", tmp_path, "--measure", "--json"
    )
    assert again.returncode == 0, again.stderr


def test_a_directory_is_inspected(llama, corpus):
    done = run_command("inspect", "--model", llama, "--data", corpus, "--json")
    assert "lm_head.weight" in done.stdout


def test_a_directory_of_this_machine_is_refused_on_another_cluster(llama, corpus):
    done = run_command(
        "submit", "--model", llama, "--data", corpus, "--budget", "avg_bits<=4",
        "--address", "http://elsewhere:8265", "--storage", "s3://bucket/runs", "--json",
    )  # fmt: skip
    assert re.search(
        "the model directory '.*' is a folder of this machine", document(done)["error"]["message"]
    )
