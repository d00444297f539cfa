//! What an interface leaves to its driver.
#![expect(unsafe_code, reason = "ethtool's requests have no safe binding")]

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `ETHTOOL_GTXCSUM`.
const GET_TX_CHECKSUMS: u32 = 0x16;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether what leaves by the interface may lack its checksums when another host, or another namespace, receives it:
/// network cards compute them, but a veth hands packets on as they are.
pub fn leaves_open(name: &str, hardware: bool) -> bool {
    !hardware && computes_checksums(name).unwrap_or(true)
}

/// Whether packets that leave by the interface, in the network namespace of the calling thread, have checksums that
/// its driver is to compute.
fn computes_checksums(name: &str) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all zeros is a value of each of the struct's fields.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut value = Value {
        command: GET_TX_CHECKSUMS,
        data: 0,
    };
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads a whole `ifreq` there, and writes the value it points to, which outlives the call.
    let asked =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data != 0)
}

/// Why datagrams of the udp backend that leave by the interface are not fast.
pub fn unsummed(name: &str) -> String {
    format!(
        "{name} hands packets on without their checksums, which `ethtool -K {name} tx off` changes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_devices_there_are() {
        assert!(computes_checksums("lo").unwrap());
        let missing = computes_checksums("no-such-device").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        let too_long = computes_checksums("a-name-longer-than-any-device's").unwrap_err();
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidInput);
    }
}
