"""What tests share: a tiny model and its project, servers on the
loopback, and where the examples are.
"""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples" / "data"
