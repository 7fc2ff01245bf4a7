//! Fetches an info dict from peers: BEP 9 and BEP 10 over TCP.
//!
//! Refuses to know what the torrent is for. We do this ourselves, as the engine would take hostile numbers from an info dict before
//! we could look at it. Invariant: what comes back has the right SHA-1 and has passed every check of `parse_info`.

use super::peers::PeerBook;
use super::torrent::{self, Limits, MAX_INFO, TorrentError, TorrentInfo};
use crate::bencode::{self, Value};
use crate::ids::InfoHash;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CONNECT: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(20);
/// Until a peer that did not have it is asked again: one that has just started may have it then.
const AGAIN: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 8;
const BLOCK: usize = 16 << 10;
/// The longest message that is read: a block and its dict, a bitfield, or another client's handshake.
const MAX_MESSAGE: usize = 128 << 10;
/// Messages that are read from one peer before it is given up.
const MAX_MESSAGES: usize = 4096;
/// The number that we give to ut_metadata: peers send it to us.
const OURS: u8 = 3;

#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("connection")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("not a BitTorrent peer of this torrent")]
    Handshake,
    #[error("the peer has no extensions")]
    NoExtensions,
    #[error("the peer offers no metadata")]
    NotOffered,
    #[error("the peer refused")]
    Refused,
    #[error("a message of {len} bytes: want at most {MAX_MESSAGE}")]
    LongMessage { len: u32 },
    #[error("an info dict of {size} bytes: want 1 to {MAX_INFO}")]
    Size { size: i64 },
    #[error("a message that breaks the protocol: {what}")]
    Protocol { what: &'static str },
    #[error("the info dict has info-hash {found}, want {want}")]
    Hash { found: InfoHash, want: InfoHash },
    /// The bytes are what the info-hash stands for, so no other peer can do better.
    #[error("the torrent is not one of ours")]
    Torrent(#[from] TorrentError),
}

/// Asks the peers in the book, several at once, and new ones as they are found, until one has it.
///
/// Errors: only [`MetadataError::Torrent`] ends it; the caller sets the time limit by dropping the future.
pub async fn from_book(book: &PeerBook, info_hash: InfoHash, limits: Limits<'_>) -> Result<TorrentInfo, MetadataError> {
    let mut tried: HashMap<SocketAddr, Instant> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let ripe = |peer: &SocketAddr| tried.get(peer).is_none_or(|at| at.elapsed() > AGAIN);
        let next: Vec<SocketAddr> = book
            .peers(info_hash)
            .into_iter()
            .filter(ripe)
            .take(AT_ONCE - running.len())
            .collect();
        for peer in next {
            tried.insert(peer, Instant::now() + WHOLE);
            running.spawn(async move { (peer, from_peer(peer, info_hash).await) });
        }
        let done = tokio::select! {
            Some(done) = running.join_next() => done.expect("asking a peer does not panic"),
            () = book.wait(Duration::from_millis(200)) => continue,
        };
        match done {
            (_, Ok(bytes)) => return Ok(torrent::parse_info(&bytes, Some(info_hash), limits)?),
            (peer, Err(error)) => {
                tracing::debug!(%peer, %info_hash, %error, "no metadata");
                tried.insert(peer, Instant::now());
            }
        }
    }
}

/// The info dict's bytes from one peer; their SHA-1 is right.
pub async fn from_peer(peer: SocketAddr, info_hash: InfoHash) -> Result<Vec<u8>, MetadataError> {
    timeout(WHOLE, async {
        let stream = timeout(CONNECT, TcpStream::connect(peer))
            .await
            .map_err(|_| MetadataError::Timeout)??;
        stream.set_nodelay(true)?;
        Wire { stream }.fetch(info_hash).await
    })
    .await
    .map_err(|_| MetadataError::Timeout)?
}

struct Wire {
    stream: TcpStream,
}

impl Wire {
    async fn fetch(&mut self, info_hash: InfoHash) -> Result<Vec<u8>, MetadataError> {
        self.handshake(info_hash).await?;
        let hello = Value::dict([("m", Value::dict([("ut_metadata", Value::Int(i64::from(OURS)))]))]);
        self.send(0, &bencode::encode(&hello)).await?;
        let (theirs, size) = self.offer().await?;
        let blocks = size.div_ceil(BLOCK);
        for block in 0..blocks {
            let request = Value::dict([("msg_type", Value::Int(0)), ("piece", Value::Int(block as i64))]);
            self.send(theirs, &bencode::encode(&request)).await?;
        }
        let mut out = vec![0; size];
        let mut have = vec![false; blocks];
        for _ in 0..MAX_MESSAGES {
            let Some((OURS, payload)) = self.receive().await? else { continue };
            let (block, data) = parse_block(&payload, size)?;
            out[block * BLOCK..][..data.len()].copy_from_slice(data);
            have[block] = true;
            if have.iter().all(|have| *have) {
                let found = InfoHash(torrent::sha1(&out));
                if found != info_hash {
                    return Err(MetadataError::Hash { found, want: info_hash });
                }
                return Ok(out);
            }
        }
        Err(MetadataError::Protocol { what: "too much else" })
    }

    async fn handshake(&mut self, info_hash: InfoHash) -> Result<(), MetadataError> {
        let mut hello = [0; 68];
        hello[0] = 19;
        hello[1..20].copy_from_slice(b"BitTorrent protocol");
        hello[25] = 0x10;
        hello[28..48].copy_from_slice(&info_hash.0);
        hello[48..56].copy_from_slice(b"-BB0001-");
        getrandom::fill(&mut hello[56..]).map_err(io::Error::other)?;
        self.stream.write_all(&hello).await?;
        let mut theirs = [0; 68];
        self.stream.read_exact(&mut theirs).await?;
        if theirs[..20] != hello[..20] || theirs[28..48] != info_hash.0 {
            return Err(MetadataError::Handshake);
        }
        if theirs[25] & 0x10 == 0 {
            return Err(MetadataError::NoExtensions);
        }
        Ok(())
    }

    /// Their number for ut_metadata, and the size of the info dict.
    async fn offer(&mut self) -> Result<(u8, usize), MetadataError> {
        for _ in 0..MAX_MESSAGES {
            let Some((0, payload)) = self.receive().await? else { continue };
            return parse_offer(&payload);
        }
        Err(MetadataError::NotOffered)
    }

    async fn send(&mut self, extension: u8, payload: &[u8]) -> io::Result<()> {
        let mut message = (payload.len() as u32 + 2).to_be_bytes().to_vec();
        message.extend([20, extension]);
        message.extend(payload);
        self.stream.write_all(&message).await
    }

    /// The next message, if it is an extension's: its number and payload.
    async fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>, MetadataError> {
        let len = self.stream.read_u32().await?;
        if len as usize > MAX_MESSAGE {
            return Err(MetadataError::LongMessage { len });
        }
        let mut message = vec![0; len as usize];
        self.stream.read_exact(&mut message).await?;
        Ok(match message.as_slice() {
            [20, extension, payload @ ..] => Some((*extension, payload.to_vec())),
            _ => None,
        })
    }
}

fn parse_offer(payload: &[u8]) -> Result<(u8, usize), MetadataError> {
    let what = "its extension handshake";
    let (hello, _) = bencode::decode_prefix(payload).map_err(|_| MetadataError::Protocol { what })?;
    let number = hello.get("m").and_then(|m| m.get("ut_metadata")).and_then(Value::as_int);
    let theirs = number.and_then(|number| u8::try_from(number).ok()).filter(|number| *number != 0);
    let theirs = theirs.ok_or(MetadataError::NotOffered)?;
    let size = hello
        .get("metadata_size")
        .and_then(Value::as_int)
        .ok_or(MetadataError::NotOffered)?;
    match usize::try_from(size) {
        Ok(bytes) if bytes > 0 && bytes as u64 <= MAX_INFO => Ok((theirs, bytes)),
        _ => Err(MetadataError::Size { size }),
    }
}

/// A block's index and bytes; its length is the only right one.
fn parse_block(payload: &[u8], size: usize) -> Result<(usize, &[u8]), MetadataError> {
    let protocol = |what| MetadataError::Protocol { what };
    let (head, at) = bencode::decode_prefix(payload).map_err(|_| protocol("the head of a block"))?;
    match head.get("msg_type").and_then(Value::as_int) {
        Some(1) => {}
        Some(2) => return Err(MetadataError::Refused),
        _ => return Err(protocol("neither a block nor a refusal")),
    }
    let block = head
        .get("piece")
        .and_then(Value::as_int)
        .and_then(|block| usize::try_from(block).ok());
    let block = block
        .filter(|block| *block < size.div_ceil(BLOCK))
        .ok_or(protocol("a block past the end"))?;
    let data = &payload[at..];
    if data.len() != BLOCK.min(size - block * BLOCK) {
        return Err(protocol("a block of a wrong length"));
    }
    Ok((block, data))
}

#[cfg(test)]
mod tests;
