"""`raycluster batch --offline` on the cluster: a job of Ray Data that asks the app from inside."""
