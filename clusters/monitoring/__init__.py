"""What the cluster's endpoint tells Prometheus, the rules that watch it, and a Grafana dashboard that shows it."""
