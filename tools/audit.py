"""`make audit`: are there known vulnerabilities in what is installed? Says so, too, when nobody could be asked.

pip-audit ends with 0 and "No known vulnerabilities found" when its service knows none of the packages (a mirror, or a
proxy that answers 404), and with a traceback when the service is away. Neither is a verdict.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

#: Exit codes: nothing known, something known, nobody could be asked.
CLEAN, VULNERABLE, NO_VERDICT = 0, 1, 2
#: Our own project is not on the index; pip-audit skips it, as it should.
_OURS: Final = "batching"


class Verdict(NamedTuple):
    """What the audit means: lines for people, and the exit code."""

    code: int
    lines: list[str]


def verdict(report: dict[str, Any]) -> Verdict:
    """Read pip-audit's JSON report (https://pypi.org/project/pip-audit/, `--format json`)."""
    found = [each for each in report.get("dependencies", []) if each["name"] != _OURS]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    flawed = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none yet'}"
        for each in found
        for flaw in each.get("vulns", [])
    ]
    if flawed:
        return Verdict(VULNERABLE, [f"{len(flawed)} known vulnerabilities:", *flawed])
    if skipped:
        few = ", ".join(sorted(skipped)[:5]) + (", …" if len(skipped) > 5 else "")
        what = f"no verdict: the service knows nothing about {len(skipped)} of {len(found)} packages ({few}); "
        return Verdict(NO_VERDICT, [what + "ask again from where https://pypi.org can be reached"])
    return Verdict(CLEAN, [f"no known vulnerability in {len(found)} packages"])


def main() -> int:
    """Audit the environment that runs this."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
        done = subprocess.run(  # noqa: S603 - a fixed command
            [*command, "--format", "json", "--output", str(report)], check=False, capture_output=True, text=True
        )
        if not report.exists():
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            sys.stderr.write(f"no verdict: the vulnerability service cannot be reached: {last}\n")
            return NO_VERDICT
        said = verdict(json.loads(report.read_text(encoding="utf-8")))
    sys.stderr.write("\n".join([*said.lines, ""]))
    return said.code


if __name__ == "__main__":
    raise SystemExit(main())
