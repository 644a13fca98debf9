"""What `--help` says, and what it costs."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from raysearch.cli import app
from raysearch.cli.choices import cost_kinds, export_targets, profile_targets, surrogates
from raysearch.cli.options import COMMANDS

HEAVY = ("torch", "ray", "optuna", "matplotlib", "onnxruntime")


def help_of(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("export", export_targets),
        ("profile", profile_targets),
        ("resolve", surrogates),
        ("run", cost_kinds),
        ("submit", cost_kinds),
    ],
)
def test_what_an_option_takes_is_listed_from_where_it_is_registered(command, choices):
    words = list(choices())
    assert words
    text = help_of(command)
    assert ", ".join(words) in text
    assert "{choices}" not in text


def test_every_command_has_its_heading():
    text = CliRunner().invoke(app, ["--help"]).stdout
    names = [name for names in COMMANDS.values() for name in names]
    assert sorted(names) == sorted(typer.main.get_command(app).commands)
    assert [text.index(heading) for heading in COMMANDS] == sorted(text.index(each) for each in COMMANDS)


@pytest.mark.process
def test_the_list_of_commands_imports_nothing_heavy():
    code = f"""
import sys
from typer.testing import CliRunner
from raysearch.cli import app
assert "resolve" in CliRunner().invoke(app, ["--help"]).stdout
sys.exit(", ".join(name for name in {HEAVY} if name in sys.modules) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
