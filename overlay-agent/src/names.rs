//! Names for people of what packets and maps have as numbers.

/// An IP protocol.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// An interface of the caller's network namespace; `None` where there is no such interface.
pub fn interface_name(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex)
        .ok()
        .map(|name| name.to_string_lossy().into_owned())
        // What nix says of an interface that is not there.
        .filter(|name| !name.is_empty())
}

/// The name, or `if7` for an interface that is not there.
pub fn interface_label(ifindex: u32, name: Option<&str>) -> String {
    name.map_or_else(|| format!("if{ifindex}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_has_no_name() {
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(0), None);
        assert_eq!(interface_name(i32::MAX.cast_unsigned()), None);
        assert_eq!(interface_label(7, None), "if7");
    }
}
