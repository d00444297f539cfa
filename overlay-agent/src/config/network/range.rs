//! The subnets of a network that nodes may lease: flannel's `CheckNetworkConfig`, once for both
//! families on 128-bit numbers.

/// What differs between the families.
#[derive(Clone, Copy, Debug)]
pub struct FamilyRules {
    /// Put before the keys in texts.
    prefix: &'static str,
    /// How a text that says "network" names it.
    network: &'static str,
    bits: u32,
    /// The subnet length chosen for a network with room for four of them.
    usual_len: u8,
}

pub const IPV4: FamilyRules = FamilyRules {
    prefix: "",
    network: "network",
    bits: 32,
    usual_len: 24,
};
pub const IPV6: FamilyRules = FamilyRules {
    prefix: "IPv6",
    network: "IPv6Network",
    bits: 128,
    usual_len: 64,
};

/// The config's keys of one family. An all-zero bound means an absent one.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Base address without host bits, and prefix length.
    pub network: (u128, u8),
    pub subnet_len: u64,
    pub min: u128,
    pub max: u128,
}

/// The checked bounds, with the defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub subnet_len: u8,
    pub min: u128,
    pub max: u128,
}

/// flannel's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("please define a correct {prefix}Network parameter in the flannel config")]
    NoNetwork { prefix: &'static str },
    #[error("SubnetLen must be less than /{limit}")]
    SubnetTooSmall { limit: u32 },
    #[error("network must be able to accommodate at least four subnets")]
    TooFewSubnets,
    #[error("{network} is too small. Minimum useful network prefix is /{limit}")]
    NetworkTooSmall { network: &'static str, limit: u32 },
    #[error("{prefix}{bound} is not in the range of the {prefix}Network")]
    OutOfNetwork {
        prefix: &'static str,
        bound: &'static str,
    },
    #[error("{prefix}{bound} is not on a SubnetLen boundary: {}", address(*bits, *value))]
    Unaligned {
        prefix: &'static str,
        bound: &'static str,
        bits: u32,
        value: u128,
    },
    /// flannel finds this out when it looks for a free subnet.
    #[error(
        "out of subnets: {prefix}SubnetMin is greater than {prefix}SubnetMax; exchange them in the \
         network config"
    )]
    Empty { prefix: &'static str },
}

impl FamilyRules {
    pub const fn no_network(self) -> RangeError {
        RangeError::NoNetwork {
            prefix: self.prefix,
        }
    }

    pub fn check(self, bounds: Bounds) -> Result<Range, RangeError> {
        let Self { prefix, bits, .. } = self;
        let (base, network_len) = bounds.network;
        if network_len == 0 {
            return Err(self.no_network());
        }
        let subnet_len = self.subnet_len(network_len, bounds.subnet_len)?;
        let subnet_size = 1u128 << (bits - u32::from(subnet_len));
        let network_size = 1u128 << (bits - u32::from(network_len));
        let last = base + (network_size - subnet_size);
        let contains = |address: u128| address & !(network_size - 1) == base;

        let min = match bounds.min {
            0 => base + subnet_size,
            min if contains(min) => min,
            _ => {
                return Err(RangeError::OutOfNetwork {
                    prefix,
                    bound: "SubnetMin",
                });
            }
        };
        let max = match bounds.max {
            0 => last,
            max if contains(max) => max,
            _ => {
                return Err(RangeError::OutOfNetwork {
                    prefix,
                    bound: "SubnetMax",
                });
            }
        };
        for (bound, value) in [("SubnetMin", min), ("SubnetMax", max)] {
            if value & (subnet_size - 1) != 0 {
                return Err(RangeError::Unaligned {
                    prefix,
                    bound,
                    bits,
                    value,
                });
            }
        }
        if min > max {
            return Err(RangeError::Empty { prefix });
        }
        Ok(Range {
            subnet_len,
            min,
            max,
        })
    }

    /// Every subnet needs four addresses, and the network four subnets: the first one is not leased
    /// by default.
    fn subnet_len(self, network_len: u8, wanted: u64) -> Result<u8, RangeError> {
        let longest = self.bits - 2;
        if wanted > 0 {
            let len = u8::try_from(wanted)
                .ok()
                .filter(|len| u32::from(*len) <= longest)
                .ok_or(RangeError::SubnetTooSmall { limit: longest + 1 })?;
            return if u32::from(len) < u32::from(network_len) + 2 {
                Err(RangeError::TooFewSubnets)
            } else {
                Ok(len)
            };
        }
        if u32::from(network_len) > longest - 2 {
            return Err(RangeError::NetworkTooSmall {
                network: self.network,
                limit: longest - 2,
            });
        }
        Ok((network_len + 2).max(self.usual_len))
    }
}

fn address(bits: u32, value: u128) -> std::net::IpAddr {
    match u32::try_from(value) {
        Ok(value) if bits == 32 => std::net::Ipv4Addr::from(value).into(),
        _ => std::net::Ipv6Addr::from(value).into(),
    }
}
