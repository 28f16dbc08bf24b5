"""Reports: statistics of runs and models to tables, figures and offline HTML pages."""
