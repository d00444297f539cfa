//! UDP sockets of processes in the network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use procfs::process::{FDTarget, all_processes};

use crate::check::facts::UdpSocket;

/// A socket, whoever has it.
struct Socket {
    address: IpAddr,
    port: u16,
    inode: u64,
}

/// Those at one of the ports. The kernel's own, such as those of vxlan devices, are in no process.
pub fn at(ports: &BTreeSet<u16>) -> Vec<UdpSocket> {
    // `self` is the process, whose namespace the calling thread may have left.
    let files = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
    let texts = files
        .into_iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    let sockets = texts.flat_map(|text| parse(&text));
    let sockets: Vec<Socket> = sockets.filter(|s| ports.contains(&s.port)).collect();
    let inodes = sockets.iter().map(|socket| socket.inode).collect();
    let processes = owners(&inodes);
    let of_process = |socket: Socket| {
        Some(UdpSocket {
            address: socket.address,
            port: socket.port,
            process: processes.get(&socket.inode)?.clone(),
        })
    };
    sockets.into_iter().filter_map(of_process).collect()
}

/// The processes that have the sockets, as far as they can be seen.
fn owners(inodes: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    let processes = all_processes().into_iter().flatten().flatten();
    for process in processes.take_while(|_| !inodes.is_empty()) {
        let files = process.fd().into_iter().flatten().flatten();
        for file in files {
            if let FDTarget::Socket(inode) = file.target
                && inodes.contains(&inode)
            {
                let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
                owners.insert(inode, format!("{name} ({})", process.pid));
            }
        }
    }
    owners
}

fn parse(text: &str) -> Vec<Socket> {
    text.lines().skip(1).filter_map(socket).collect()
}

/// `  42: 0100007F:2118 00000000:0000 07 … uid timeout inode …`.
fn socket(line: &str) -> Option<Socket> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = words.get(1)?.split_once(':')?;
    Some(Socket {
        address: self::address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: words.get(9)?.parse().ok()?,
    })
}

/// Words of 32 bits, each as the machine has it in memory.
fn address(text: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..text.len()).step_by(8) {
        let word = u32::from_str_radix(text.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_as_the_kernel_lists_them() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            1: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0\n\
            2: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n\
            bad line\n";
        let sockets = parse(text);
        assert_eq!(sockets.len(), 2);
        assert_eq!((sockets[0].port, sockets[0].inode), (8472, 0));
        assert_eq!(sockets[1].address, IpAddr::from([127, 0, 0, 1]));
        let ipv6 = address("00000000000000000000000001000000");
        assert_eq!(ipv6, Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(address("12"), None);
    }
}
