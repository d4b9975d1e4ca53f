"""pytest: tests that start a native program get `leak_checked`, which fails them when the program leaks.

    def test_orders(leak_checked):
        finished = leak_checked("./orders", "--all", capture_output=True)
        assert finished.returncode == 0

A baseline is used when `leaks.baseline` lies in pytest's root folder. For an extension module of Python, run all of
pytest: `PYTHONMALLOC=malloc leakscope run -o pytest.leak -- python -m pytest`, then `leakscope gate pytest.leak`.
"""
import subprocess

import pytest


@pytest.fixture
def leak_checked(request, tmp_path):
    recordings = []
    baseline = request.config.rootpath / "leaks.baseline"

    def run(*command, **options):
        recording = tmp_path / f"{len(recordings)}.leak"
        recordings.append(recording)
        leakscope = ["leakscope", "run", "--quiet", "--log-file=/dev/null", "-o", recording, "--"]
        return subprocess.run([*leakscope, *command], **options)

    yield run
    if recordings:
        gate = ["leakscope", "gate", *(["--baseline", baseline] if baseline.exists() else []), *recordings]
        judged = subprocess.run(gate, capture_output=True, text=True)
        if judged.returncode != 0:
            pytest.fail(judged.stdout + judged.stderr, pytrace=False)
