"""The report: an HTML page on runs, with charts, tables and a verdict in words."""
