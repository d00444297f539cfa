//! Takes secrets out of texts. What looks like one is one: a key too many is removed rather than one too few.

use regex::{Captures, Regex};

/// In place of a secret.
const REMOVED: &str = "<removed>";
/// Shorter ones would be found in everything.
const MIN_SECRET: usize = 4;

/// What is removed, by what stands before and behind it.
const PATTERNS: [(&str, &str); 7] = [
    // Private keys in PEM.
    (
        r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
        REMOVED,
    ),
    // URLs with a login.
    (
        r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]+(?:@[^/\s@]+)*@",
        "${before}<removed>@",
    ),
    // Headers.
    (
        r"(?i)(?P<before>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}",
        "${before}<removed>",
    ),
    // Names of secrets with a quoted value.
    (
        r#"(?i)(?P<before>[\w.-]*(?:password|passwd|passphrase|secret|token|psk|private[_-]?key|api[_-]?key|preshared[_-]?key|credential)[\w.-]*\\?["']?\s*[=:]\s*\\?)(?P<quote>["'])[^"'\n]*["']"#,
        "${before}${quote}<removed>${quote}",
    ),
    // And with one that is not, or is the next word of a command line.
    (
        r#"(?i)(?P<before>(?:--?)?[\w.-]*(?:password|passwd|passphrase|secret|token|psk|private[_-]?key|api[_-]?key|preshared[_-]?key)[\w.-]*\s*[=:]\s*|(?:^|\s)--?[\w.-]*(?:password|passwd|passphrase|secret|token|psk)\s+)[^\s"',;<-][^\s"',;]*"#,
        "${before}<removed>",
    ),
    // JSON Web Tokens.
    (
        r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
        REMOVED,
    ),
    // 32 bytes in base64: keys of WireGuard, public ones among them.
    (
        r"(?P<before>^|[^A-Za-z0-9+/=])[A-Za-z0-9+/]{43}=(?P<behind>[^A-Za-z0-9+/=]|$)",
        "${before}<removed>${behind}",
    ),
];

pub struct Redactor {
    patterns: Vec<(Regex, &'static str)>,
    /// Known ones.
    secrets: Vec<String>,
}

impl Redactor {
    pub fn new(mut secrets: Vec<String>) -> Self {
        secrets.retain(|secret| secret.len() >= MIN_SECRET);
        // One that contains another goes first.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let compiled = PATTERNS.iter().filter_map(|(pattern, with)| {
            let multi_line = format!("(?m){pattern}");
            Some((Regex::new(&multi_line).ok()?, *with))
        });
        Self {
            patterns: compiled.collect(),
            secrets,
        }
    }

    pub fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret, REMOVED);
        }
        for (pattern, with) in &self.patterns {
            let replace = |found: &Captures<'_>| {
                let mut replaced = String::new();
                found.expand(with, &mut replaced);
                replaced
            };
            text = pattern.replace_all(&text, replace).into_owned();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redact(text: &str) -> String {
        Redactor::new(vec!["known-value".to_owned()]).redact(text)
    }

    #[test]
    fn every_pattern_is_one() {
        assert_eq!(Redactor::new(Vec::new()).patterns.len(), PATTERNS.len());
    }

    #[test]
    fn secrets_of_all_kinds_are_removed() {
        let key = "aGVsbG8gd29ybGQgaGVsbG8gd29ybGQgaGVsbG8hISE=";
        let pem = "-----BEGIN EC PRIVATE KEY-----\nPLANTED\nPLANTED\n-----END EC PRIVATE KEY-----";
        for (text, clean) in [
            (
                "--etcd-password=PLANTED --v=4",
                "--etcd-password=<removed> --v=4",
            ),
            (
                "--etcd-password PLANTED --v=4",
                "--etcd-password <removed> --v=4",
            ),
            (
                "  FLANNELD_ETCD_PASSWORD=PLANTED",
                "  FLANNELD_ETCD_PASSWORD=<removed>",
            ),
            (
                r#"{"PSK": "PLANTED","Port":1}"#,
                r#"{"PSK": "<removed>","Port":1}"#,
            ),
            (
                r#"{"PrivateKey":"PLANTED"}"#,
                r#"{"PrivateKey":"<removed>"}"#,
            ),
            ("api_key: PLANTED", "api_key: <removed>"),
            (
                "https://root:PLANTED@10.0.0.1:2379/x",
                "https://<removed>@10.0.0.1:2379/x",
            ),
            (
                "http://u:PL@NTED@h,http://v:PLANTED@g",
                "http://<removed>@h,http://<removed>@g",
            ),
            (
                "Authorization: Bearer PLANTED.x",
                "Authorization: Bearer <removed>",
            ),
            ("comment \"token=PLANTED\"", "comment \"token=<removed>\""),
            ("x eyJhbGciOi.eyJzdWIi.PLANTED y", "x <removed> y"),
            ("it is known-value here", "it is <removed> here"),
        ] {
            assert_eq!(redact(text), clean, "{text}");
        }
        assert_eq!(redact(&format!("peer: {key}")), "peer: <removed>");
        assert_eq!(redact(&format!("a\n{pem}\nb")), "a\n<removed>\nb");
        // Cut off in the middle, the rest of it is still a secret.
        assert!(!redact(&pem[..50]).contains("PLANTED"));
    }

    #[test]
    fn what_a_maintainer_needs_stays() {
        for text in [
            "--etcd-keyfile=/etc/etcd/client.key --etcd-endpoints=https://10.0.0.1:2379",
            "-A FORWARD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
            "inet6 fe80::1/64 scope link",
            r#""vtep_mac": "02:00:00:00:00:01""#,
            "net.netfilter.nf_conntrack_max = 262144",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
