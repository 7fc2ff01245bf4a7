//! The daemon's own life: how it stops, dies, starts again, and cannot start.

use crate::rig::*;
use std::fs;
use std::net::{TcpListener, UdpSocket};

#[test]
fn what_is_mounted_outlives_the_daemon_and_the_next_one_seeds_again() {
    let mut a = Host::new(&Net::Link);
    a.start();
    a.import_noise("data", 4, 17);
    let link = Host::with_peer(&a.publish("data"), a.port);
    a.ok(&["create", "disk", "--size", "64M"]);
    let dir = a.dir().join("mnt");
    fs::create_dir(&dir).unwrap();
    a.ok(&["mount", "disk", text(&dir)]);
    fs::write(dir.join("before"), b"1").unwrap();

    let status = a.stop();
    assert!(status.success(), "{status}");
    assert_eq!(fs::read(dir.join("before")).unwrap(), b"1");
    fs::write(dir.join("stopped"), b"2").unwrap();

    a.start();
    a.kill();
    fs::write(dir.join("killed"), b"3").unwrap();
    // The socket of the dead one is still there.
    a.start();
    let images = a.images();
    let mounted = images.iter().find(|image| image["name"] == "disk").unwrap();
    assert_eq!(mounted["dir"].as_str(), Some(text(&dir)), "{mounted}");
    let b = Host::new(&Net::Link);
    b.ok(&["pull", &link]);
    assert_eq!(b.chain("data"), a.chain("data"));
    a.ok(&["umount", "disk"]);
    a.ok(&["mount", "disk", text(&dir), "--read-only"]);
    for (name, want) in [("before", b"1"), ("stopped", b"2"), ("killed", b"3")] {
        assert_eq!(fs::read(dir.join(name)).unwrap(), want, "{name}");
    }
    a.ok(&["umount", "disk"]);
    assert!(!a.log().contains("panicked"), "{}", a.log());
}

#[test]
fn a_daemon_that_is_stopped_while_it_hashes_what_it_seeds_stops_cleanly() {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 48, 18);
    a.publish("data");
    for _ in 0..3 {
        a.start();
        let status = a.stop();
        assert!(status.success(), "{status}");
    }
    assert!(!a.log().contains("panicked"), "{}", a.log());
}

#[test]
fn a_port_that_somebody_has_is_named() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let a = Host::at(&Net::Link, port, None);
    let (code, said) = a.start_in_vain(&[]);
    assert_ne!(code, Some(0));
    assert!(
        said.contains(&format!("127.0.0.1:{port}")) && said.to_lowercase().contains("in use"),
        "{said}"
    );
    drop(tcp);
    let b = Host::new(&Net::Dht(&[]));
    let _udp = UdpSocket::bind(("127.0.0.1", b.port)).unwrap();
    let (code, said) = b.start_in_vain(&[]);
    assert_ne!(code, Some(0));
    assert!(said.contains(&format!("DHT node on 127.0.0.1:{}", b.port)), "{said}");
    // Without its daemon the store works.
    b.ok(&["create", "x", "--size", "16M", "--fs", "none"]);
}

#[test]
fn proxy_variables_do_not_keep_the_swarm_from_its_peers() {
    let mut a = Host::new(&Net::Link);
    a.import_noise("data", 4, 19);
    let link = Host::with_peer(&a.publish("data"), a.port);
    a.start();
    let proxied = [
        ("http_proxy", "http://127.0.0.1:9"),
        ("ALL_PROXY", "http://127.0.0.1:9"),
        ("NO_PROXY", "example.org"),
    ];
    let mut b = Host::new(&Net::Link);
    b.start_with(&proxied);
    b.ok(&["pull", &link]);
    let c = Host::new(&Net::Link);
    let pulled = c.spawn(&["pull", &link], &proxied).wait_with_output().unwrap();
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert_eq!(b.chain("data"), c.chain("data"));
}
