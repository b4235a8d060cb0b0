import subprocess
import sys
from pathlib import Path

import asr


def run_asr(*arguments, cwd=None):
    command = Path(sys.executable).with_name("asr")
    return subprocess.run([str(command), *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)


def test_version_and_help():
    assert run_asr("--version").stdout.strip() == asr.__version__
    shown = run_asr("--help").stdout
    assert "show" in shown
    assert "list" in shown


def test_show_and_list(run_dir):
    shown = run_asr("show", str(run_dir))
    assert shown.returncode == 0
    assert "WER" in shown.stdout
    listed = run_asr("list", str(run_dir.parent))
    assert listed.returncode == 0
    assert "finished" in listed.stdout


def test_a_folder_without_a_run_is_one_line_and_exit_code_2(tmp_path):
    done = run_asr("show", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
