"""Reports: statistics of runs and models to tables, figures and offline HTML pages.

Takes what a study or the probes measured, gives files. html.py, base.html and base.css are the base
of every page: a new page is a body and a style of its own.
"""
