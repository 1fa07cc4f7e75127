"""Grafana: dashboards of what Prometheus has recorded, behind a password of the cluster's own."""

from __future__ import annotations

from raycluster.core import templates
from raycluster.core.interfaces import ROOT, Process
from raycluster.services.ray_node import HEAD
from raycluster.services.wiring import Wiring
from raycluster.spec import ClusterSpec, ResolvedHost

GRAFANA = "grafana"
USER = "admin"
SOURCE_UID = "raycluster-prometheus"
"""By which the dashboards name their data source."""

DASHBOARDS = f"{GRAFANA}/dashboards"
HOME = "overview.json"
PROVISIONING = f"{GRAFANA}/provisioning"
SCRAPE_INTERVAL = "10s"

# Password and signing key are made here, where they stay as long as the database that knows the
# password: they are in no file, argument or variable that the laptop sends. Grafana reads them by
# its own `$__file{...}`; `__FILE` variables are known to the image's own start script alone.
_RUN = """\
command -v grafana >/dev/null || { echo "grafana is not installed" >&2; exit 127; }
umask 077
cd "$0" && mkdir -p data plugins provisioning/alerting provisioning/plugins || exit 1
for name in password secret-key; do
  [ -s "$name" ] && continue
  tr -dc A-Za-z0-9 </dev/urandom | head -c 32 >"$name.new" && mv "$name.new" "$name" || exit 1
done
exec grafana server --homepath="${GF_PATHS_HOME:-/usr/share/grafana}" --config="$0/grafana.ini"
"""

READ_PASSWORD = ("sh", "-c", f'cat "$RAYCLUSTER_ROOT/{GRAFANA}/password"')
"""Prints the password, inside of Grafana's box."""
HOW_TO_READ = f"raycluster exec {GRAFANA} -- sh -c 'cat $RAYCLUSTER_ROOT/{GRAFANA}/password'"


def has_grafana(spec: ClusterSpec, host: ResolvedHost) -> bool:
    """Tell whether Grafana should run on the host."""
    return spec.monitoring is not None and spec.monitoring.grafana and host.role == HEAD


def grafana(spec: ClusterSpec, host: ResolvedHost, wiring: Wiring) -> Process | None:
    """Return the process that shows dashboards on the head's loopback."""
    if spec.monitoring is None or not has_grafana(spec, host):
        return None
    files = {
        f"{GRAFANA}/grafana.ini": grafana_ini(spec),
        f"{PROVISIONING}/datasources/raycluster.yaml": datasources(spec),
        f"{PROVISIONING}/dashboards/raycluster.yaml": provider(),
        **{f"{DASHBOARDS}/{name}": text for name, text in templates.plain(DASHBOARDS).items()},
    }
    place = f"{ROOT}/{GRAFANA}"
    return Process(
        role=GRAFANA,
        argv=("sh", "-c", _RUN, place),
        env={
            "RAYCLUSTER_ROOT": ROOT,
            "GF_PATHS_DATA": f"{place}/data",
            "GF_PATHS_LOGS": f"{place}/data/log",
            "GF_PATHS_PLUGINS": f"{place}/plugins",
            "GF_PATHS_PROVISIONING": f"{ROOT}/{PROVISIONING}",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{ROOT}/{DASHBOARDS}/{HOME}",
            "GF_SECURITY_ADMIN_PASSWORD": f"$__file{{{place}/password}}",
            "GF_SECURITY_SECRET_KEY": f"$__file{{{place}/secret-key}}",
        },
        ports={"grafana": spec.ports.grafana},
        image=spec.monitoring.grafana_image,
        files=files,
        files_id=wiring.seal(files),
        program="grafana",
    )


def grafana_ini(spec: ClusterSpec) -> bytes:
    """Return Grafana's configuration."""
    return templates.render("grafana/grafana.ini", port=spec.ports.grafana, user=USER)


def datasources(spec: ClusterSpec) -> bytes:
    """Return what tells Grafana of the Prometheus beside it."""
    return templates.render(
        "grafana/datasources.yaml",
        uid=SOURCE_UID,
        url=f"http://127.0.0.1:{spec.ports.prometheus}",
        interval=SCRAPE_INTERVAL,
    )


def provider() -> bytes:
    """Return what tells Grafana where the dashboards lie."""
    return templates.render("grafana/dashboards.yaml", folder=DASHBOARDS)
