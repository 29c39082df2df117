"""Writes deploy/prometheus/alerts.yaml as the object that the Prometheus operator wants."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULE: Final = DEPLOY / "kubernetes" / "components" / "production" / "prometheus-rule.yaml"
HEAD: Final = """\
# deploy/prometheus/alerts.yaml for the Prometheus operator. Made by tests/deploy/write_prometheus_rule.py
"""


def main() -> None:
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "defender"},
        "spec": yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text()),
    }
    RULE.write_text(HEAD + yaml.safe_dump(rule, sort_keys=False, allow_unicode=True, width=110))


if __name__ == "__main__":
    main()
