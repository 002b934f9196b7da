"""Dashboards as code: `python -m deploy.grafana` writes what `dashboards/` describes to `json/`, which Grafana reads."""
