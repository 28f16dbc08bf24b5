"""A page to browse heads: one HTML file that asks nothing of the network.

Takes the datasets of the probes frequency_usage, name_heads and attention_maps, gives the file.
contents.py says what data the scripts read; a new view is a script in SCRIPTS (write.py).
"""

from rope_study.reports.head_page.write import write_page

__all__ = ["write_page"]
