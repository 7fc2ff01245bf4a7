//! A pipe between two hosts that lets so many bytes through and then holds the rest back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub struct Throttle {
    pub port: u16,
    limit: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Throttle {
    /// Forwards to `target`, on loopback; `limit` bytes come back from there.
    pub fn start(target: u16, limit: u64) -> Throttle {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (limit, passed) = (Arc::new(AtomicU64::new(limit)), Arc::new(AtomicU64::new(0)));
        let ended = Arc::new(AtomicBool::new(false));
        let state = (limit.clone(), passed.clone(), ended.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if state.2.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                let (limit, passed, ended) = (state.0.clone(), state.1.clone(), state.2.clone());
                let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || copy(up.0, up.1, |_| true));
                std::thread::spawn(move || {
                    copy(server, client, |bytes| {
                        while passed.load(Ordering::Relaxed) >= limit.load(Ordering::Relaxed) {
                            if ended.load(Ordering::Relaxed) {
                                return false;
                            }
                            std::thread::sleep(Duration::from_millis(2));
                        }
                        passed.fetch_add(bytes, Ordering::Relaxed);
                        true
                    })
                });
            }
        });
        Throttle {
            port,
            limit,
            passed,
            ended,
        }
    }

    /// The limit is reached.
    pub fn holds(&self) -> bool {
        self.passed.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed)
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.limit.store(u64::MAX, Ordering::Relaxed);
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut may: impl FnMut(u64) -> bool) {
    let mut buf = [0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut buf) {
        if !may(len as u64) || to.write_all(&buf[..len]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
