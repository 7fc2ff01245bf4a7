//! The tracker bridge: an HTTP tracker on loopback that hands the engine the peers in our book.
//!
//! Refuses to know where the peers come from. The engine has no other way to take a peer into a running torrent. Invariant: it
//! answers only on loopback, only under a path that nobody else knows, and only for torrents in the book.

use super::peers::PeerBook;
use crate::bencode::{self, Value};
use crate::ids::InfoHash;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::routing::get;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Seconds until the engine asks again: while it lacks pieces, and when it has them all.
const HURRY: i64 = 1;
const REST: i64 = 30;

pub struct Bridge {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    book: Arc<PeerBook>,
    answers: AtomicU64,
    handed: AtomicU64,
}

impl Bridge {
    pub async fn start(book: Arc<PeerBook>) -> io::Result<Bridge> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let path = format!("/{}/announce", hex::encode(secret));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}{path}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            book,
            answers: AtomicU64::new(0),
            handed: AtomicU64::new(0),
        });
        let app = Router::new().route(&path, get(announce)).with_state(shared.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the tracker bridge ended");
            }
        });
        Ok(Bridge { url, shared, task })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many announces it has answered, and how many peers it has handed over in them.
    pub fn answers(&self) -> (u64, u64) {
        (
            self.shared.answers.load(Ordering::Relaxed),
            self.shared.handed.load(Ordering::Relaxed),
        )
    }

    pub fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn announce(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> (StatusCode, Vec<u8>) {
    let Some(info_hash) = query.as_deref().and_then(info_hash_of) else {
        return (StatusCode::BAD_REQUEST, failure("no info_hash of 20 bytes"));
    };
    if !shared.book.is_open(info_hash) {
        return (StatusCode::OK, failure("not a torrent of this host"));
    }
    let peers = shared.book.peers(info_hash);
    shared.answers.fetch_add(1, Ordering::Relaxed);
    shared.handed.fetch_add(peers.len() as u64, Ordering::Relaxed);
    let interval = if shared.book.is_complete(info_hash) { REST } else { HURRY };
    (StatusCode::OK, answer(interval, &peers))
}

fn failure(why: &str) -> Vec<u8> {
    bencode::encode(&Value::dict([("failure reason", Value::bytes(why))]))
}

fn answer(interval: i64, peers: &[SocketAddr]) -> Vec<u8> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for peer in peers {
        match peer {
            SocketAddr::V4(peer) => {
                v4.extend(peer.ip().octets());
                v4.extend(peer.port().to_be_bytes());
            }
            SocketAddr::V6(peer) => {
                v6.extend(peer.ip().octets());
                v6.extend(peer.port().to_be_bytes());
            }
        }
    }
    bencode::encode(&Value::dict([
        ("interval", Value::Int(interval)),
        ("peers", Value::Bytes(v4)),
        ("peers6", Value::Bytes(v6)),
    ]))
}

/// The info-hash of an announce: 20 bytes, percent-encoded.
fn info_hash_of(query: &str) -> Option<InfoHash> {
    let raw = query.split('&').find_map(|part| part.strip_prefix("info_hash="))?;
    let mut out = Vec::with_capacity(20);
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut value = [0];
                hex::decode_to_slice([bytes.next()?, bytes.next()?], &mut value).ok()?;
                value[0]
            }
            b'+' => b' ',
            other => other,
        });
    }
    Some(InfoHash(out.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_compact_and_canonical() {
        let peers = ["10.0.0.1:258".parse().unwrap(), "[::1]:3".parse().unwrap()];
        let mut want = b"d8:intervali1e5:peers6:\x0a\0\0\x01\x01\x026:peers618:".to_vec();
        want.extend([0; 15]);
        want.extend(b"\x01\0\x03e");
        assert_eq!(answer(1, &peers), want);
    }

    #[test]
    fn an_info_hash_is_twenty_bytes_in_any_escape() {
        let want = InfoHash(*b"abcdefghij\0\x01\xff klmnop");
        assert_eq!(info_hash_of("port=1&info_hash=abcdefghij%00%01%FF+klmnop&x=y"), Some(want));
        for bad in [
            "",
            "info_hash=",
            "info_hash=abc",
            "info_hash=%zz",
            "info_hash=%f",
            "xinfo_hash=abcdefghijabcdefghij",
        ] {
            assert_eq!(info_hash_of(bad), None, "{bad}");
        }
    }
}
