"""A page to browse heads: one HTML file that asks nothing of the network."""

from rope_study.reports.head_page.write import write_page

__all__ = ["write_page"]
