//! What `deploy/kubernetes` installs: the manifest takes the place of flannel's, and the chart makes the same.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use overlay_agent::config::network::NetworkConfig;
use overlay_tests::{
    document::root,
    kubernetes::{ApiServer, MANIFEST, helm},
    lab::Lab,
    netns::checked,
    skip,
};
use serde_json::{Value, json};

use crate::with_api_server;

/// The rights of flannel's own manifest.
const FLANNELS: [(&str, &str); 5] = [
    ("pods", "get"),
    ("nodes", "get"),
    ("nodes", "list"),
    ("nodes", "watch"),
    ("nodes/status", "patch"),
];

/// What cannot be changed of the DaemonSet in flannel's releases, and what has to be there.
pub fn flannels_daemon_set() -> Value {
    let labels = json!({ "app": "flannel", "k8s-app": "flannel" });
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "kube-flannel-ds", "namespace": "kube-flannel" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "kube-flannel", "image": "flannel" }] },
            },
        },
    })
}

/// Has the cluster be one with flannel's objects.
pub fn install_flannels(lab: &Lab, server: &ApiServer, objects: &[Value]) -> Result<()> {
    let words = [
        "-n",
        "kube-flannel",
        "delete",
        "daemonset",
        "kube-flannel-ds",
    ];
    server.kubectl(&words)?;
    let path = lab.dir().join("flannels.json");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    fs::write(&path, list.to_string())?;
    server
        .kubectl(&["apply", "-f", path.to_str().context("UTF-8")?])
        .map(drop)
}

fn rights(server: &ApiServer) -> Result<BTreeSet<(String, String)>> {
    let role = server.kubectl(&["get", "clusterrole", "flannel", "-o", "json"])?;
    let role: Value = serde_json::from_str(&role)?;
    let words = |list: &Value| -> Result<Vec<String>> {
        let words = list.as_array().context("a list")?;
        Ok(words
            .iter()
            .filter_map(|word| word.as_str())
            .map(str::to_owned)
            .collect())
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().context("rules")? {
        ensure!(words(&rule["apiGroups"])? == [""], "{rule}");
        for resource in words(&rule["resources"])? {
            for verb in words(&rule["verbs"])? {
                rights.insert((resource.clone(), verb));
            }
        }
    }
    Ok(rights)
}

#[test]
fn the_manifest_takes_the_place_of_flannels_and_asks_for_no_more_rights() {
    let name = "the_manifest_takes_the_place_of_flannels_and_asks_for_no_more_rights";
    with_api_server(name, Lab::builder().nodes(1), |lab, server| {
        let flannels = FLANNELS.map(|(resource, verb)| (resource.to_owned(), verb.to_owned()));
        let rights = rights(server)?;
        ensure!(rights == BTreeSet::from(flannels), "{rights:?}");
        install_flannels(lab, server, &[flannels_daemon_set()])?;
        let said = server.kubectl(&["apply", "-f", MANIFEST])?;
        ensure!(
            said.contains("daemonset.apps/kube-flannel-ds configured"),
            "{said}"
        );
        Ok(())
    });
}

fn render(helm: &Path, settings: &[&str]) -> Result<String> {
    let chart = root().join("deploy/kubernetes/helm");
    let mut command = Command::new(helm);
    command.args(["template", "flannel"]).arg(chart);
    command.args(["--namespace", "kube-flannel"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    checked(&mut command)
}

/// The objects of a manifest, as the API server would have them.
fn objects(lab: &Lab, server: &ApiServer, manifest: &str) -> Result<Vec<Value>> {
    let path = lab.dir().join("rendered.yml");
    fs::write(&path, manifest)?;
    let path = path.to_str().context("UTF-8")?;
    let list = server.kubectl(&["apply", "--dry-run=server", "-o", "json", "-f", path])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().context("objects")?.clone())
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let object = objects.iter().find(|object| object["kind"] == kind);
    object.with_context(|| format!("no {kind}"))
}

fn network(objects: &[Value]) -> Result<String> {
    let config = &of_kind(objects, "ConfigMap")?["data"]["net-conf.json"];
    let config = config.as_str().context("a network config")?;
    NetworkConfig::parse(config.as_bytes()).with_context(|| config.to_owned())?;
    let compact: Value = serde_json::from_str(config)?;
    Ok(compact.to_string())
}

#[test]
fn the_chart_makes_what_the_manifest_has() {
    let name = "the_chart_makes_what_the_manifest_has";
    let Some(helm) = helm() else {
        skip!("no helm was fetched here: `cargo xtask test --kubernetes` does it");
    };
    with_api_server(name, Lab::builder().nodes(1), |lab, server| {
        let rendered = render(&helm, &[])?;
        let found = objects(lab, server, &rendered)?;
        let names = |objects: &[Value]| -> BTreeSet<String> {
            let name =
                |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
            objects.iter().map(name).collect()
        };
        let manifest = objects(lab, server, &fs::read_to_string(MANIFEST)?)?;
        let mut wanted = names(&manifest);
        wanted.remove(r#""Namespace" "kube-flannel""#);
        ensure!(names(&found) == wanted, "{:?}", names(&found));
        // The manifest is what the server has: nothing would change.
        let path = lab.dir().join("chart.yml");
        fs::write(&path, rendered)?;
        let difference = server.kubectl(&["diff", "-f", path.to_str().context("UTF-8")?]);
        difference.map(drop)
    });
}

#[test]
fn the_chart_takes_the_values_of_flannels_and_the_api_server_what_comes_of_them() {
    let name = "the_chart_takes_the_values_of_flannels_and_the_api_server_what_comes_of_them";
    let Some(helm) = helm() else {
        skip!("no helm was fetched here: `cargo xtask test --kubernetes` does it");
    };
    with_api_server(name, Lab::builder().nodes(1), |lab, server| {
        let of = |settings: &[&str]| objects(lab, server, &render(&helm, settings)?);
        let dual = of(&["podCidrv6=fd00:10:244::/48", "flannel.directRouting=true"])?;
        ensure!(
            network(&dual)?
                == r#"{"Backend":{"DirectRouting":true,"Type":"vxlan"},"EnableIPv6":true,"EnableNFTables":false,"IPv6Network":"fd00:10:244::/48","Network":"10.244.0.0/16"}"#,
            "{}",
            network(&dual)?
        );
        // Numbers in values are floating-point ones.
        let large = network(&of(&["flannel.vni=2000000", "flannel.mtu=9000"])?)?;
        ensure!(
            large.contains(r#""MTU":9000,"Type":"vxlan","VNI":2000000"#),
            "{large}"
        );
        let psk = "flannel.psk=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let wireguard = of(&[
            "flannel.backend=wireguard",
            "flannel.backendPort=7000",
            "flannel.tunnelMode=auto",
            "flannel.keepaliveInterval=25",
            psk,
        ])?;
        let text = network(&wireguard)?;
        ensure!(
            text.contains(r#""ListenPort":7000,"Mode":"auto""#),
            "{text}"
        );
        let only6 = of(&[
            "podCidr=",
            "podCidrv6=fd00:10:244::/48",
            "flannel.enableNFTables=true",
        ])?;
        ensure!(network(&only6)?.contains(r#""EnableIPv4":false"#));

        let changed = of(&[
            "flannel.image.repository=registry.example/overlay-agent",
            "flannel.image.tag=1",
            "flannel.cniBinDir=/usr/libexec/cni",
            "flannel.skipCNIConfigInstallation=true",
            "flannel.healthz.port=0",
            "flannel.nodeSelector.pool=a",
            "flannel.resources.limits.memory=200Mi",
            "global.imagePullSecrets[0].name=registry",
        ])?;
        let pod = &of_kind(&changed, "DaemonSet")?["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        ensure!(
            container["image"] == "registry.example/overlay-agent:1",
            "{container}"
        );
        ensure!(
            container["args"] == json!(["--ip-masq", "--kube-subnet-mgr"]),
            "{container}"
        );
        ensure!(container["livenessProbe"].is_null(), "{container}");
        ensure!(
            container["resources"]["limits"]["memory"] == "200Mi",
            "{container}"
        );
        ensure!(
            pod["initContainers"]
                .as_array()
                .is_some_and(|init| init.len() == 1),
            "{pod}"
        );
        ensure!(pod["nodeSelector"]["pool"] == "a", "{pod}");
        ensure!(
            pod["imagePullSecrets"] == json!([{ "name": "registry" }]),
            "{pod}"
        );
        ensure!(
            pod["volumes"][1]["hostPath"]["path"] == "/usr/libexec/cni",
            "{pod}"
        );

        let refused = render(&helm, &["netpol.enabled=true"])
            .err()
            .context("netpol")?;
        ensure!(
            format!("{refused:#}").contains("network policies"),
            "{refused:#}"
        );
        Ok(())
    });
}
