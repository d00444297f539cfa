//! Whether nf_tables holds any table here, asked of the kernel itself: a host without `nft` mostly has
//! none.

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE` and `NFT_MSG_GETTABLE`.
const NEW_TABLE: u16 = 10 << 8;
const GET_TABLE: u16 = 10 << 8 | 1;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const REQUEST_BYTES: u32 = 20;
const ANSWER_BYTES: usize = 32 << 10;

/// Asks for the tables of every family and looks at the first message of the answer.
pub async fn has_tables() -> io::Result<bool> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    let mut request = Vec::with_capacity(REQUEST_BYTES as usize);
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(GET_TABLE.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.resize(REQUEST_BYTES as usize, 0);
    socket.send(&request).await?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer).await?;
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    Ok(kind.map(u16::from_ne_bytes) == Some(NEW_TABLE))
}
