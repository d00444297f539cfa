//! UDP without checksums. Whether these pass where others do not tells who spoils checksums.

use std::io;

use nix::sys::socket::setsockopt;
use tokio::net::UdpSocket;

mod option {
    use nix::{setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// Send without, by IPv4.
        NoCheck, SetOnly, libc::SOL_SOCKET, libc::SO_NO_CHECK, bool
    );
    sockopt_impl!(
        /// Send without, by IPv6.
        NoCheck6Tx, SetOnly, libc::SOL_UDP, libc::UDP_NO_CHECK6_TX, bool
    );
    sockopt_impl!(
        /// Receive without, by IPv6. By IPv4 they are taken anyway.
        NoCheck6Rx, SetOnly, libc::SOL_UDP, libc::UDP_NO_CHECK6_RX, bool
    );
}

/// Has the socket take packets without a checksum.
pub fn accept_none(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        setsockopt(socket, option::NoCheck6Rx, &true)?;
    }
    Ok(())
}

/// Sends without one.
pub fn without<T>(
    socket: &UdpSocket,
    send: impl FnOnce(&UdpSocket) -> io::Result<T>,
) -> io::Result<T> {
    set(socket, true)?;
    let outcome = send(socket);
    set(socket, false)?;
    outcome
}

fn set(socket: &UdpSocket, none: bool) -> io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        setsockopt(socket, option::NoCheck6Tx, &none)?;
    } else {
        setsockopt(socket, option::NoCheck, &none)?;
    }
    Ok(())
}
