"""What is not needed is not imported: `mixlab --help` and `import mixlab` stay light."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "pydantic", "rich", "plotly", "jinja2", "transformers", "tokenizers")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after running `code`."""
    report = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert loaded_by("from mixlab.cli import run\nassert run(['--help']) == 0") == set()
    # A verb's options make typer import pydantic, 0.04 s.
    assert loaded_by("from mixlab.cli import run\nassert run(['train', '--help']) == 0") <= {"pydantic"}


def test_import_mixlab_imports_nothing_heavy() -> None:
    assert loaded_by("import mixlab\ndir(mixlab)") == set()


def test_the_check_can_fail() -> None:
    assert loaded_by("import rich") == {"rich"}


def test_python_dash_m_is_the_command_and_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "mixlab"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mixlab 0.")
    wrong = subprocess.run([*command, "trian"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    piped = subprocess.Popen([*command, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert piped.stdout is not None
    piped.stdout.close()
    _, said = piped.communicate()
    assert (piped.returncode, said) == (0, "")
