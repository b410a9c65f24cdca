"""Where a cluster's servers listen, said once for those who start them, those who describe them and those who ask them."""

HEAD_PORT = 6379  # Ray's own, to which nodes and drivers connect
JOBS_PORT = 8265  # the Jobs API and Ray's dashboard
METRICS_PORT = 9464  # Raymill's Prometheus endpoint, one for the cluster
