//! What else is on the host: other processes with the device or the port, a stock flanneld before and after, and
//! configs that the backend cannot serve.

use std::net::UdpSocket;

use anyhow::ensure;
use overlay_tests::{
    lab::{Lab, agent::Launch, scenario},
    sys,
    wait::wait_for,
};

use super::{CONFIG, DEADLINE, DEVICE, PORT, wait_pings};

#[test]
fn a_device_or_a_port_that_another_process_has_is_named_and_taken_when_it_is_free() {
    scenario(Lab::builder().nodes(2).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let address = node.address;
        let said = |text: &str| {
            wait_for("the agent to say why", DEADLINE, || {
                let log = node.with_agent(|agent| Ok(agent.log()))?;
                ensure!(log.contains(text), "{log}");
                Ok(())
            })
        };
        node.stop_agent()?;
        let port = node.enter(|| UdpSocket::bind((address, PORT)))?;
        node.start_agent(lab.store(), &[])?;
        said("UDP port 8285 of 172.30.0.11 is in use by another process")?;
        drop(port);
        wait_pings(lab)?;

        node.stop_agent()?;
        let tun = node.enter(|| sys::tun(DEVICE))?;
        node.start_agent(lab.store(), &[])?;
        said("cannot attach to flannel0: another process has it")?;
        drop(tun);
        wait_pings(lab)
    });
}

#[test]
fn a_stock_flanneld_that_comes_after_the_agent_has_the_way_to_itself() {
    scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let base = node.subnet_env()?.subnet()?.network();
        node.stop_agent()?;
        // As flannel's start does it: the first free name, the address, up, and the route unless there is one.
        let stock = node.enter(|| sys::tun("flannel%d"))?;
        node.namespace.ip_batch(&format!(
            "addr add {base}/32 dev flannel1\n\
             link set flannel1 mtu 1472 up\n\
             route add 10.5.0.0/16 dev flannel1 scope global\n"
        ))?;
        let way = node.cmd("ip", ["route", "get", "10.5.200.1"])?;
        ensure!(way.contains("dev flannel1"), "{way}");
        drop(stock);

        // After a clean-up it finds the name free.
        node.operator(&[
            "cleanup",
            "--subnet-file",
            &node.subnet_file.display().to_string(),
        ])?;
        ensure!(!node.has_interface(DEVICE), "the device is left");
        let routes = node.cmd("ip", ["route"])?;
        ensure!(!routes.contains("10.5.0.0/16"), "{routes}");
        let _stock = node.enter(|| sys::tun("flannel%d"))?;
        ensure!(node.has_interface(DEVICE));
        Ok(())
    });
}

#[test]
fn ipv6_is_refused_with_what_to_write_instead() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48"}"#;
    scenario(Lab::builder().nodes(1).config(config), |lab| {
        let node = lab.node(0);
        node.start_agent(lab.store(), &[])?;
        wait_for("the reason", DEADLINE, || {
            let log = node.with_agent(|agent| Ok(agent.log()))?;
            ensure!(log.contains("the udp backend carries IPv4 only"), "{log}");
            Ok(())
        })
    });
}

#[test]
fn the_port_of_the_config_is_that_of_all_nodes() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":7890}}"#;
    scenario(Lab::builder().nodes(2).config(config), |lab| {
        lab.bring_up(1)?;
        wait_pings(lab)?;
        let sockets = lab.node(0).cmd("ss", ["-Huanp"])?;
        ensure!(sockets.contains("172.30.0.11:7890"), "{sockets}");
        Ok(())
    });
}

#[test]
fn another_interface_of_the_name_is_left_alone() {
    scenario(Lab::builder().nodes(1).config(CONFIG), |lab| {
        let node = lab.node(0);
        node.namespace.ip_batch("link add flannel0 type bridge\n")?;
        let (status, log) = node.run_to_end(&Launch::new(lab.store(), &[]), DEADLINE)?;
        ensure!(!status.success(), "{status}");
        ensure!(
            log.contains("an interface of this name is no TUN device"),
            "{log}"
        );
        ensure!(node.has_interface(DEVICE));
        Ok(())
    });
}
