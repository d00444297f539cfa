//! How things are called.

use ipnetwork::Ipv4Network;

/// What the names of flannel's routes begin with.
pub const PREFIX: &str = "flannel-";

/// The name that flannel gives the route of a subnet.
pub fn route(subnet: Ipv4Network) -> String {
    format!("{PREFIX}{subnet}").replace(['.', '/'], "-")
}

/// The last part of a path or URL.
pub fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A resource's URL without what stands before the project: the API writes some, and takes any.
pub fn path(url: &str) -> &str {
    url.find("projects/")
        .and_then(|at| url.get(at..))
        .unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_called_as_flannel_calls_them() {
        let subnet = "10.40.3.0/24".parse().unwrap();
        assert_eq!(route(subnet), "flannel-10-40-3-0-24");
    }

    #[test]
    fn a_resource_has_one_path_whatever_its_url_begins_with() {
        let path = "projects/p/zones/europe-west1-b/instances/node-1";
        for url in [
            "https://www.googleapis.com/compute/v1/projects/p/zones/europe-west1-b/instances/node-1",
            "https://compute.googleapis.com/compute/v1/projects/p/zones/europe-west1-b/instances/node-1",
            path,
        ] {
            assert_eq!(super::path(url), path);
        }
        assert_eq!(base("projects/123/networks/default"), "default");
    }
}
