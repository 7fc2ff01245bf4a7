//! A peer made by hand, for what no honest client would send.

use crate::bencode::{self, Value};
use crate::ids::InfoHash;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the peer says and sends.
#[derive(Clone)]
pub struct Script {
    pub info_hash: InfoHash,
    /// What it serves as metadata.
    pub metadata: Vec<u8>,
    /// What it says of the metadata's size.
    pub said_size: i64,
    /// It says that it has so many pieces.
    pub pieces: usize,
    /// Whether it answers requests for blocks, with noise.
    pub answers: bool,
}

/// Runs until the test's process ends; each connection has a thread.
pub struct RawPeer {
    pub addr: SocketAddr,
    /// Blocks that it was asked for.
    pub blocks: Arc<AtomicU64>,
}

impl RawPeer {
    pub fn start(script: Script) -> RawPeer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let blocks = Arc::new(AtomicU64::new(0));
        let counter = blocks.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, counter) = (script.clone(), counter.clone());
                std::thread::spawn(move || serve(stream, &script, &counter));
            }
        });
        RawPeer { addr, blocks }
    }
}

fn send(stream: &mut TcpStream, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut message = (payload.len() as u32 + 1).to_be_bytes().to_vec();
    message.push(kind);
    message.extend(payload);
    stream.write_all(&message)
}

fn serve(mut stream: TcpStream, script: &Script, blocks: &AtomicU64) -> io::Result<()> {
    let mut hello = [0; 68];
    stream.read_exact(&mut hello)?;
    hello[25] = 0x10;
    hello[28..48].copy_from_slice(&script.info_hash.0);
    hello[48..68].copy_from_slice(b"-XX0001-abcdefghijkl");
    stream.write_all(&hello)?;
    let offer = Value::dict([
        ("m", Value::dict([("ut_metadata", Value::Int(1))])),
        ("metadata_size", Value::Int(script.said_size)),
    ]);
    send(&mut stream, 20, &[&[0], bencode::encode(&offer).as_slice()].concat())?;
    if script.pieces > 0 {
        let mut bits = vec![0xff; script.pieces.div_ceil(8)];
        if !script.pieces.is_multiple_of(8) {
            *bits.last_mut().unwrap() <<= 8 - script.pieces % 8;
        }
        send(&mut stream, 5, &bits)?;
        send(&mut stream, 1, &[])?;
    }
    let mut theirs = 3;
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let mut message = vec![0; u32::from_be_bytes(len) as usize];
        stream.read_exact(&mut message)?;
        match message.as_slice() {
            [20, 0, rest @ ..] => {
                let (offer, _) = bencode::decode_prefix(rest).map_err(io::Error::other)?;
                theirs = offer
                    .get("m")
                    .and_then(|m| m.get("ut_metadata"))
                    .and_then(Value::as_int)
                    .unwrap_or(3) as u8;
            }
            [20, _, rest @ ..] => {
                let (request, _) = bencode::decode_prefix(rest).map_err(io::Error::other)?;
                let block = request.get("piece").and_then(Value::as_int).unwrap_or(0) as usize;
                let head = bencode::encode(&Value::dict([("msg_type", Value::Int(1)), ("piece", Value::Int(block as i64))]));
                let from = (block << 14).min(script.metadata.len());
                let data = &script.metadata[from..script.metadata.len().min(from + (1 << 14))];
                send(&mut stream, 20, &[&[theirs], head.as_slice(), data].concat())?;
            }
            [6, rest @ ..] if rest.len() == 12 => {
                let want = u32::from_be_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
                let noise = super::noise(want, blocks.fetch_add(1, Ordering::Relaxed) + 99);
                if !script.answers {
                    continue;
                }
                send(&mut stream, 7, &[&rest[..8], &noise].concat())?;
            }
            _ => {}
        }
    }
}
