//! The etcd helper itself: clusters start, keep data over a restart, and speak TLS.

use anyhow::Result;
use overlay_tests::etcd::{ClientCert, Etcd};

#[test]
fn a_member_keeps_its_data_over_a_restart_and_loses_it_when_wiped() -> Result<()> {
    let mut etcd = Etcd::start()?;
    etcd.put("/a", "1")?;
    etcd.stop(0)?;
    etcd.restart(0)?;
    assert_eq!(etcd.get("/a")?.as_deref(), Some("1"));
    etcd.kill(0)?;
    etcd.wipe(0)?;
    etcd.restart(0)?;
    assert_eq!(etcd.get("/a")?, None);
    Ok(())
}

#[test]
fn a_tls_cluster_survives_the_loss_of_one_member() -> Result<()> {
    let mut etcd = Etcd::builder()
        .members(3)
        .tls(ClientCert::Required)
        .start()?;
    etcd.put("/a", "1")?;
    etcd.stop(1)?;
    assert_eq!(etcd.list("/")?, [("/a".to_owned(), "1".to_owned())]);
    Ok(())
}
