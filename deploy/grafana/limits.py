"""Where a panel turns red: the same numbers as in `deploy/prometheus/rules/alerting.yml`, held together by a test."""

QUEUE_SHARE = 0.1
FAILED_SHARE = 0.02
MISSED_SHARE = 0.05
KV_SHARE = 0.95
FIRST_OUTPUT_SECONDS = 10
