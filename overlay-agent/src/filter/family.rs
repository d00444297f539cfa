//! The address family of a rule set, as the tools name it.

/// Address family of a rule set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleFamily {
    V4,
    V6,
}

impl RuleFamily {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family's name in nftables.
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The table flannel uses for this family.
    pub fn flannel_table(self) -> &'static str {
        match self {
            Self::V4 => "flannel-ipv4",
            Self::V6 => "flannel-ipv6",
        }
    }

    /// Every group of the family.
    pub fn multicast(self) -> &'static str {
        match self {
            Self::V4 => "224.0.0.0/4",
            Self::V6 => "ff00::/8",
        }
    }
}
