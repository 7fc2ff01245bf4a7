//! A link between two peers that is not as fast as loopback.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What connects to it is passed on, and all that comes back shares one rate. Ends with the test's process.
pub struct SlowLink {
    pub addr: SocketAddr,
}

impl SlowLink {
    pub fn start(to: SocketAddr, bytes_per_second: u64) -> SlowLink {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let free_at = Arc::new(Mutex::new(Instant::now()));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(to) else { continue };
                let (up, down) = ((near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near));
                std::thread::spawn(move || pass(up.0, up.1, |_| {}));
                let free_at = free_at.clone();
                std::thread::spawn(move || {
                    pass(down.0, down.1, |len| {
                        let mut free_at = free_at.lock().unwrap();
                        let until = (*free_at).max(Instant::now()) + Duration::from_micros(len as u64 * 1_000_000 / bytes_per_second);
                        *free_at = until;
                        drop(free_at);
                        std::thread::sleep(until.saturating_duration_since(Instant::now()));
                    })
                });
            }
        });
        SlowLink { addr }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, pay: impl Fn(usize)) {
    let mut buf = vec![0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut buf) {
        pay(len);
        if to.write_all(&buf[..len]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
