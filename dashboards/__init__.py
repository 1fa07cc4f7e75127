"""Grafana's dashboards, in Python: `python -m dashboards` writes templates/grafana/dashboards."""
