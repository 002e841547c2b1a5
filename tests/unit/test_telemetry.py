"""Nothing of what runs here is reported to anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving import clean_environment

SCRIPT = """
import maestrale, openvino.tools.ovc.telemetry_utils as used
print(used.tm.__name__)
"""


def test_openvino_reports_nothing(tmp_path: Path) -> None:
    # In CI it reports nothing anyway; there this would pass by itself.
    marks = {"CI", "TF_BUILD", "JENKINS_URL"}
    environment = {key: value for key, value in clean_environment().items() if key not in marks}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.iterdir()) == []
