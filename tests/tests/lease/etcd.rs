//! Leases in a real etcd, single member: what the agent writes is what flannel would, and nothing
//! that happens to etcd makes it forget its peers.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::Result;
use overlay_agent::model::{Alarm, LeaseAttrs, OwnState};
use overlay_tests::lease_node::{
    CONFIG, Node, PREFIX, etcd_with_config, eventually, key, lease_of,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_written_as_flannel_writes_it_and_renewed_in_time() -> Result<()> {
    let etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).ttl(6, 3).start().await?;
    let own = node.view().own;
    let records = etcd.list(&format!("{PREFIX}/subnets"))?;
    assert_eq!(
        records,
        [(
            key(&own.key.to_string()),
            r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#.to_owned()
        )]
    );
    let first = own.expires.expect("a lease has an end");
    node.until("the lease is renewed", |view| {
        view.own.expires.is_some_and(|end| end > first)
    })
    .await?;
    assert_eq!(etcd.list(&format!("{PREFIX}/subnets"))?, records);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_see_each_other_come_change_and_go() -> Result<()> {
    let etcd = etcd_with_config()?;
    let first = Node::new(&etcd, 1).start().await?;
    let second = Node::new(&etcd, 2).start().await?;
    let subnet = second.view().own.key.subnet();
    first
        .until("the second node is a peer", |view| {
            view.peers.contains_key(&subnet)
        })
        .await?;
    assert!(
        second
            .view()
            .peers
            .contains_key(&first.view().own.key.subnet())
    );

    let moved = LeaseAttrs::host_gw([192, 168, 0, 22].into());
    second.handle.publish(moved.clone());
    first
        .until("the change is seen", |view| {
            view.peers.get(&subnet).is_some_and(|p| *p.attrs == moved)
        })
        .await?;

    second.stop().await;
    etcd.delete(&key(&format!("{}-{}", subnet.ip(), subnet.prefix())))?;
    first
        .until("the peer is gone", |view| view.peers.is_empty())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_own_lease_is_written_again_under_the_same_key() -> Result<()> {
    let etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).start().await?;
    let own = key(&node.view().own.key.to_string());
    etcd.delete(&own)?;
    eventually("the lease is back", || Ok(etcd.get(&own)?.is_some())).await?;
    node.until("it is held", |view| view.own.state == OwnState::Held)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_taken_by_another_node_is_given_up_and_taken_back_when_free() -> Result<()> {
    let etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).ttl(3, 1).start().await?;
    let own = key(&node.view().own.key.to_string());
    let theirs = r#"{"PublicIP":"192.168.0.99","PublicIPv6":null}"#;
    etcd.put(&own, theirs)?;
    node.until("the take-over is noticed", |view| {
        matches!(view.own.state, OwnState::Taken { .. })
    })
    .await?;
    let alarms = node.view().alarms;
    assert!(
        matches!(alarms.first(), Some(Alarm::Taken { by, .. }) if by.to_string() == "192.168.0.99"),
        "{alarms:?}"
    );
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(etcd.get(&own)?.as_deref(), Some(theirs));
    etcd.delete(&own)?;
    node.until("the lease is held again", |view| {
        view.own.state == OwnState::Held && view.alarms.is_empty()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_used_and_never_given_a_lease() -> Result<()> {
    let etcd = etcd_with_config()?;
    let pinned = key("10.5.7.0-24");
    etcd.put(&pinned, r#"{"PublicIP":"192.168.0.1"}"#)?;
    let node = Node::new(&etcd, 1).ttl(3, 1).start().await?;
    assert_eq!(node.view().own.key.to_string(), "10.5.7.0-24");
    assert!(node.view().own.reservation);
    let value = etcd.get(&pinned)?;
    assert_eq!(value, Some(node.attrs().encode()));

    // Re-put by hand while the node runs, as flannel's documentation tells.
    etcd.put(&pinned, r#"{"PublicIP":"192.168.0.1"}"#)?;
    eventually("the value is put right", || Ok(etcd.get(&pinned)? == value)).await?;
    assert_eq!(lease_of(&etcd, &pinned)?, 0);
    node.until("it stays a reservation", |view| view.own.reservation)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_becomes_a_reservation_when_put_again_without_a_lease() -> Result<()> {
    let etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).ttl(4, 1).start().await?;
    let own = key(&node.view().own.key.to_string());
    assert_ne!(lease_of(&etcd, &own)?, 0);
    etcd.put(&own, &node.attrs().encode())?;
    node.until("it is a reservation", |view| view.own.reservation)
        .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(lease_of(&etcd, &own)?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dual_stack_node_has_a_subnet_of_each_family_in_one_key() -> Result<()> {
    let etcd = etcd_with_config()?;
    let theirs = key("10.5.200.0-24&fd00:5:0:c8::-64");
    etcd.put(
        &theirs,
        r#"{"PublicIP":"192.168.0.2","PublicIPv6":"fd00::2"}"#,
    )?;
    let start = || Node::new(&etcd, 1).dual_stack("fd00::1".parse().expect("an address"));
    let node = start().start().await?;
    let own = node.view().own.key;
    let text = own.to_string();
    assert!(
        text.contains("-24&fd00:5:0:") && text.ends_with("::-64"),
        "{text}"
    );
    let value = etcd.get(&key(&text))?;
    assert!(
        value.is_some_and(|value| value.contains(r#""PublicIPv6":"fd00::1""#)),
        "{text}"
    );
    let peers = node.view().peers;
    let peer = peers.values().next().expect("a peer");
    assert_eq!(key(&peer.key.to_string()), theirs);
    node.stop().await;
    assert_eq!(start().start().await?.view().own.key, own);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_finds_its_subnet_again() -> Result<()> {
    let etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).start().await?;
    let subnet = node.view().own.key.subnet();
    node.stop().await;
    let again = Node::new(&etcd, 1).start().await?;
    assert_eq!(again.view().own.key.subnet(), subnet);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_starting_at_once_get_subnets_of_their_own() -> Result<()> {
    let etcd = etcd_with_config()?;
    // Room for exactly as many nodes as start.
    etcd.put(
        &format!("{PREFIX}/config"),
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.12.0"}"#,
    )?;
    let starts = (1..=12).map(|n| Node::new(&etcd, n).subnets(1, 12).start());
    let nodes = futures::future::try_join_all(starts).await?;
    let subnets: std::collections::BTreeSet<_> = nodes
        .iter()
        .map(|node| node.view().own.key.subnet())
        .collect();
    assert_eq!(subnets.len(), 12, "{subnets:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_stack_nodes_starting_at_once_get_subnets_of_their_own_in_both_families() -> Result<()>
{
    let etcd = etcd_with_config()?;
    let address = |n: u8| Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, n.into());
    // Among 16 IPv6 subnets, some of eight choices nearly always coincide.
    let starts = (1..=8).map(|n| {
        Node::new(&etcd, n)
            .dual_stack(address(n))
            .subnets6(1, 16)
            .start()
    });
    let nodes = futures::future::try_join_all(starts).await?;
    let keys: Vec<_> = nodes.iter().map(|node| node.view().own.key).collect();
    for (index, key) in keys.iter().enumerate() {
        let rest = &keys[index + 1..];
        assert!(!rest.iter().any(|other| other.overlaps(key)), "{keys:#?}");
    }
    let records = etcd.list(&format!("{PREFIX}/subnets"))?;
    assert_eq!(records.len(), 8, "{records:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_stay_while_etcd_is_down_and_changes_arrive_after_it_is_back() -> Result<()> {
    let mut etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).start().await?;
    etcd.put(&key("10.5.200.0-24"), r#"{"PublicIP":"192.168.0.2"}"#)?;
    node.until("the peer is there", |view| view.peers.len() == 1)
        .await?;
    etcd.kill(0)?;
    node.until("the loss is noticed", |view| !view.store.connected)
        .await?;
    let view = node.view();
    assert_eq!(view.peers.len(), 1);
    assert!(view.store.last_error.is_some());
    etcd.restart(0)?;
    etcd.put(&key("10.5.201.0-24"), r#"{"PublicIP":"192.168.0.3"}"#)?;
    node.until("the new peer is seen", |view| {
        view.store.connected && view.peers.len() == 2
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_lost_its_data_gets_the_own_lease_back_and_peers_stay() -> Result<()> {
    let mut etcd = etcd_with_config()?;
    let node = Node::new(&etcd, 1).start().await?;
    let own = key(&node.view().own.key.to_string());
    etcd.put(&key("10.5.200.0-24"), r#"{"PublicIP":"192.168.0.2"}"#)?;
    for n in 0..20 {
        etcd.put("/padding", &n.to_string())?;
    }
    node.until("the peer is there", |view| view.peers.len() == 1)
        .await?;
    etcd.kill(0)?;
    etcd.wipe(0)?;
    etcd.restart(0)?;
    eventually("the own lease is back", || Ok(etcd.get(&own)?.is_some())).await?;
    node.until("the reset is reported", |view| {
        view.store.connected
            && view.peers.len() == 1
            && view.alarms.contains(&Alarm::StoreReset { absent_peers: 1 })
    })
    .await?;
    etcd.put(&key("10.5.200.0-24"), r#"{"PublicIP":"192.168.0.2"}"#)?;
    etcd.put(&key("10.5.201.0-24"), r#"{"PublicIP":"192.168.0.3"}"#)?;
    node.until("the watch goes on in the new history", |view| {
        view.peers.len() == 2
    })
    .await?;
    etcd.put(&format!("{PREFIX}/config"), CONFIG)?;
    node.until("all is well", |view| view.alarms.is_empty())
        .await
}
