//! What there is of both families, each its own.

use std::array;

/// One of each family. What is done for both is written once with `each_family!`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T4, T6 = T4> {
    pub ipv4: T4,
    pub ipv6: T6,
}

/// The same expression for what each family has, as another [`PerFamily`]. A closure could not do it,
/// for it has one argument type.
macro_rules! each_family {
    ($both:expr, $one:pat => $result:expr) => {{
        let $crate::model::PerFamily { ipv4, ipv6 } = $both;
        $crate::model::PerFamily {
            ipv4: {
                let $one = ipv4;
                $result
            },
            ipv6: {
                let $one = ipv6;
                $result
            },
        }
    }};
}
pub(crate) use each_family;

impl<T4, T6> PerFamily<T4, T6> {
    pub const fn as_ref(&self) -> PerFamily<&T4, &T6> {
        PerFamily {
            ipv4: &self.ipv4,
            ipv6: &self.ipv6,
        }
    }

    pub const fn as_mut(&mut self) -> PerFamily<&mut T4, &mut T6> {
        PerFamily {
            ipv4: &mut self.ipv4,
            ipv6: &mut self.ipv6,
        }
    }

    pub fn zip<U4, U6>(self, other: PerFamily<U4, U6>) -> PerFamily<(T4, U4), (T6, U6)> {
        PerFamily {
            ipv4: (self.ipv4, other.ipv4),
            ipv6: (self.ipv6, other.ipv6),
        }
    }
}

impl<T4, T6> PerFamily<Option<T4>, Option<T6>> {
    /// Those that there are.
    pub const fn present(&self) -> PerFamily<Option<&T4>, Option<&T6>> {
        PerFamily {
            ipv4: self.ipv4.as_ref(),
            ipv6: self.ipv6.as_ref(),
        }
    }
}

impl PerFamily<bool> {
    /// Whether it is so in one of them.
    pub const fn any(self) -> bool {
        self.ipv4 || self.ipv6
    }
}

/// IPv4's first.
impl<T> IntoIterator for PerFamily<T> {
    type Item = T;
    type IntoIter = array::IntoIter<T, 2>;

    fn into_iter(self) -> Self::IntoIter {
        [self.ipv4, self.ipv6].into_iter()
    }
}
