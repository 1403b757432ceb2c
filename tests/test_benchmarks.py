"""The benchmark that needs a GPU runs at tiny sizes on any machine."""

import json
import subprocess
import sys

import pytest
from backend_runs import ROOT, environment

pytest.importorskip("jax", reason="this benchmark is for JAX")


@pytest.mark.slow
def test_gpu_benchmark_runs(compiled, tmp_path):
    """Both precisions are measured, and TensorFlow is not loaded."""
    code = (
        "import runpy, sys; sys.modules['tensorflow'] = None; "
        f"sys.argv = ['gpu.py', '--tiny', '--decoders=lstm', '--json={tmp_path / 'gpu.json'}']; "
        "runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    )
    variables = environment(compiled)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["precision"] for row in found["updates"]] == ["float32", "mixed_bfloat16"]
    assert all(row["update_seconds"] > 0 for row in found["updates"])
    assert [row["workers"] for row in found["waits"]] == [1, 2]
    assert all(row["iteration_seconds"] > row["wait_seconds"] >= 0 for row in found["waits"])
    assert found["sampling"]["sketches_encoded_per_second"] > 0
    assert found["sampling"]["rows_drawn_per_second"] > 0
