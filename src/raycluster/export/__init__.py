"""The design of a cluster as files for other tools: Docker Compose, systemd, KubeRay."""
