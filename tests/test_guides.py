"""The guides' code runs as it stands there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_adding_a_method():
  guide = (ROOT / "docs/adding_a_method.md").read_text()
  code = "\n".join(_BLOCK.findall(guide))
  assert len(code.splitlines()) < 40
  names = {}
  exec(compile(code, "docs/adding_a_method.md", "exec"), names)
  tests = [f for name, f in names.items() if name.startswith("test_")]
  assert tests
  for test in tests:
    test()
