//! Files of other programs: systemd's about interfaces, and those of CNI.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

/// In the order of precedence.
const LINK_DIRS: [&str; 4] = [
    "etc/systemd/network",
    "run/systemd/network",
    "usr/local/lib/systemd/network",
    "usr/lib/systemd/network",
];

/// The file of systemd's that applies to the interface, and the policy by which it gives it a MAC address; `None` if
/// it gives it none.
pub fn mac_policy(root: &Path, interface: &str) -> Option<(String, String)> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    // The directory that comes first overrides files of the same name.
    for dir in LINK_DIRS.iter().rev() {
        for name in names(&root.join(dir), &["link"]) {
            let path = root.join(dir).join(&name).display().to_string();
            files.insert(name, path);
        }
    }
    let applies = |path: String| {
        let text = fs::read_to_string(&path).ok()?;
        matches(&text, interface).then_some((path, text))
    };
    let (path, text) = files.into_values().find_map(applies)?;
    let policy = settings(&text, "Link").find(|(key, _)| *key == "MACAddressPolicy");
    let policy = policy.map(|(_, value)| value.to_owned());
    policy
        .filter(|policy| policy != "none")
        .map(|policy| (path, policy))
}

fn matches(text: &str, interface: &str) -> bool {
    let mut names = settings(text, "Match")
        .filter(|(key, _)| *key == "OriginalName")
        .flat_map(|(_, value)| value.split_whitespace());
    // Other conditions name what a tunnel device has not, such as a path.
    names.any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => interface.starts_with(start),
        None => interface == pattern,
    })
}

/// The assignments of a section.
fn settings<'a>(text: &'a str, section: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let header = format!("[{section}]");
    let mut is_in = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with('[') {
            is_in = line == header;
            return None;
        }
        let (key, value) = line.split_once('=').filter(|_| is_in)?;
        Some((key.trim(), value.trim()))
    })
}

/// CNI's files in the order in which runtimes take them, and the types of the plugins that each names.
pub fn cni(dir: &Path) -> Vec<(String, Vec<String>)> {
    let names = names(dir, &["conf", "conflist", "json"]);
    let of = |name: String| {
        let path = dir.join(name);
        let value: Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
        let own = value.get("type").into_iter();
        let plugins = value.get("plugins").and_then(Value::as_array);
        let listed = plugins.into_iter().flatten().filter_map(|p| p.get("type"));
        let types = own.chain(listed).filter_map(Value::as_str);
        Some((
            path.display().to_string(),
            types.map(str::to_owned).collect(),
        ))
    };
    names.into_iter().filter_map(of).collect()
}

/// Names of the files of a directory that end so, in order.
fn names(dir: &Path, extensions: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension();
            extension.is_some_and(|e| extensions.iter().any(|wanted| e == *wanted))
        })
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_first_file_that_matches_decides_about_the_mac_address() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(mac_policy(root, "flannel.1"), None);
        let default =
            "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep\nMACAddressPolicy=persistent\n";
        write(root, "usr/lib/systemd/network/99-default.link", default);
        let (file, policy) = mac_policy(root, "flannel.1").unwrap();
        assert!(file.ends_with("99-default.link") && policy == "persistent");
        let none = "[Match]\nOriginalName=flannel*\n[Link]\nMACAddressPolicy=none\n";
        write(root, "etc/systemd/network/10-flannel.link", none);
        assert_eq!(mac_policy(root, "flannel.1"), None);
        assert!(mac_policy(root, "eth0").is_some());
    }

    #[test]
    fn cni_files_come_in_their_order_with_their_plugins() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "10-flannel.conflist",
            r#"{"plugins":[{"type":"flannel"},{"type":"portmap"}]}"#,
        );
        write(root.path(), "05-cilium.conf", r#"{"type":"cilium-cni"}"#);
        write(root.path(), "06-broken.conf", "{");
        write(root.path(), "README", "{}");
        let found = cni(root.path());
        let types: Vec<_> = found.iter().map(|(_, types)| types.join(" ")).collect();
        assert_eq!(types, ["cilium-cni", "flannel portmap"]);
    }
}
