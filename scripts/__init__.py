"""The repository's commands.

Users run the scripts here by path, `python scripts/train.py`. The packages below hold
commands of the project itself, which run as modules from the repository's root:
`python -m scripts.reproduce.nest`.
"""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
