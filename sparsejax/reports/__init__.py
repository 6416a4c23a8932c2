"""HTML reports of runs."""

from sparsejax.reports._page import FILE as PAGE_FILE
from sparsejax.reports._page import write as write_page
from sparsejax.reports._run import read as read_run

__all__ = [
  "read_run",
  "write_page",
]
