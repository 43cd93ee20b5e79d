"""The dispatcher of `vllm-prune`."""

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vllm_prune.cli import main as cli
from vllm_prune.cli.main import COMMANDS, Command, main


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom vllm_prune.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'vllm', 'numpy', 'openai'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert "heavy: []" in output
    for name, command in COMMANDS.items():
        assert f"  {name}" in output
        assert command.summary in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_two_functions(name):
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.add_arguments)
    assert callable(module.run)


@pytest.mark.parametrize("arguments", [[], ["no-such-command"]])
def test_a_wrong_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.fixture
def fake_command(monkeypatch):
    """A command `fake` that records its arguments; call with `passes_on` to install it."""
    calls = []

    def add_arguments(parser):
        parser.add_argument("model")
        parser.add_argument("--prune", default="default")

    def run(args):
        calls.append(args)
        return 7

    def install(*, passes_on: bool):
        module = SimpleNamespace(add_arguments=add_arguments, run=run)
        monkeypatch.setitem(sys.modules, "vllm_prune.cli.fake", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", Command("vllm_prune.cli.fake", "do nothing", passes_on))
        return calls

    return install


def test_the_exit_status_is_the_commands(fake_command):
    calls = fake_command(passes_on=False)
    assert main(["fake", "m", "--prune", "x"]) == 7
    assert (calls[0].model, calls[0].prune) == ("m", "x")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (
            ModuleNotFoundError("No module named 'absent_one'", name="absent_one.part"),
            1,
            "needs absent_one.part, which",
        ),
        (KeyboardInterrupt(), 130, "vllm-prune fake: interrupted"),
    ],
)
def test_what_is_not_installed_and_ctrl_c_are_told_in_a_line(fake_command, monkeypatch, capsys, error, status, told):
    fake_command(passes_on=False)

    def run(_):
        raise error

    monkeypatch.setattr(sys.modules["vllm_prune.cli.fake"], "run", run)
    assert main(["fake", "m"]) == status
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vllm_prune.absent", "json.absent", None])
def test_a_fault_of_ours_is_not_taken_for_a_missing_package(fake_command, monkeypatch, name):
    fake_command(passes_on=False)

    def run(_):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(sys.modules["vllm_prune.cli.fake"], "run", run)
    with pytest.raises(ModuleNotFoundError):
        main(["fake", "m"])


def test_unknown_options_are_refused_unless_passed_on(fake_command):
    fake_command(passes_on=False)
    with pytest.raises(SystemExit):
        main(["fake", "m", "--max-model-len", "8"])


def test_unknown_options_reach_vllm_in_order_and_unabbreviated(fake_command):
    calls = fake_command(passes_on=True)
    main(["fake", "m", "--max-model-len", "8", "--pr", "y", "--prune=z", "--enforce-eager"])
    assert calls[0].prune == "z"
    assert calls[0].passed_on == ["--max-model-len", "8", "--pr", "y", "--enforce-eager"]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.needs])
def test_what_cannot_do_without_a_package_says_so_in_one_line_before_it_starts(name, monkeypatch, capsys):
    absent = COMMANDS[name].needs
    monkeypatch.setattr(cli, "is_absent", lambda module: module == absent)
    assert main([name, "anything", "--at", "all"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vllm-prune {name}: needs {absent}, which is not installed: ")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0


def test_a_reader_that_has_ended_is_no_error():
    """As `| head -1`: the pipe is closed before the first line is written."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "vllm_prune.cli.main", "estimate", "embedded"]
    for unbuffered in ("", "1"):
        variables = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, env=variables)
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writing)


def test_another_pipe_that_breaks_is_an_error(fake_command, monkeypatch):
    fake_command(passes_on=False)

    def run(_):
        raise BrokenPipeError

    monkeypatch.setattr(sys.modules["vllm_prune.cli.fake"], "run", run)
    with pytest.raises(BrokenPipeError):
        main(["fake", "m"])
