//! Brings one object here: metadata, pieces, belief, sync.
//!
//! Refuses to know what the object is and where it goes next. Invariant: an object is handed out only when every unit of it has
//! been found right against the caller's hashes and is durable; bytes that lie are removed.

mod error;

pub use error::FetchError;

use super::believed::{self, Units, UnitsFile};
use super::engine::{Engine, EngineError, Parked, State, Torrent};
use super::metadata;
use super::node::{Step, Watcher};
use super::peers::PeerBook;
use super::storage::PartFile;
use super::torrent::{Limits, TorrentInfo};
use super::verifier::{Verdict, Verifier};
use crate::format::verity::{UNIT, digest_of_units, unit_count};
use crate::ids::{Digest, InfoHash, Sha256};
use crate::units::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const TICK: Duration = Duration::from_millis(50);
/// How long a fetch waits for another one's file.
const HANDOVER: Duration = Duration::from_secs(2);
/// How long a fetch that has failed waits for its own threads to let go of its file.
const RELEASE: Duration = Duration::from_secs(10);

/// What a fetch works with.
pub struct Tools<'a> {
    pub engine: &'a Engine,
    pub book: &'a PeerBook,
    pub watcher: &'a dyn Watcher,
    pub patience: Option<Duration>,
}

/// What vouches for the bytes.
pub struct Wanted {
    pub digest: Digest,
    pub units: Arc<Vec<[u8; 32]>>,
    /// The bitmap's file.
    pub bitmap: PathBuf,
}

/// A torrent that is complete and goes on being seeded.
pub struct Arrived {
    pub torrent: Torrent,
    pub fetched: u64,
}

impl Tools<'_> {
    fn patient(&self, info_hash: InfoHash, since: Instant) -> Result<(), FetchError> {
        if self.watcher.cancelled() {
            return Err(FetchError::Cancelled);
        }
        match self.patience {
            Some(patience) if since.elapsed() > patience => Err(FetchError::Stalled {
                info_hash,
                patience,
                peers: self.book.peers(info_hash).len(),
            }),
            _ => Ok(()),
        }
    }

    /// The info dict of `info_hash`, from whoever has it.
    pub async fn info(&self, info_hash: InfoHash, limits: Limits<'_>) -> Result<TorrentInfo, FetchError> {
        self.book.add_givers(info_hash);
        let since = Instant::now();
        let mut asking = std::pin::pin!(metadata::from_book(self.book, info_hash, limits));
        loop {
            self.watcher.step(Step::Looking {
                peers: self.book.peers(info_hash).len(),
            });
            match tokio::time::timeout(TICK * 4, &mut asking).await {
                Ok(found) => return found.map_err(|cause| FetchError::Metadata { info_hash, cause }),
                Err(_) => self.patient(info_hash, since)?,
            }
        }
    }

    /// Brings all pieces of `info` into `path`, and believes them where `wanted` says how.
    ///
    /// Errors: the torrent is out of the engine again; what has come stays for another try, unless it lies.
    pub async fn pieces(&self, info: &TorrentInfo, path: &Path, wanted: Option<&Wanted>) -> Result<Arrived, FetchError> {
        let (say, pieces) = unbounded_channel();
        let part = Arc::new(self.part(info, path, say).await?);
        let held = Arc::downgrade(&part);
        let outcome = self.try_pieces(info, part, pieces, wanted).await;
        if let Err(error) = &outcome {
            if !matches!(error, FetchError::Engine(EngineError::Twice { .. })) {
                self.engine.remove(info.info_hash()).await;
            }
            // The engine's last write and the verifier's last sync may go on: who asks again at once must find the file free.
            let since = Instant::now();
            while held.strong_count() > 0 && since.elapsed() < RELEASE {
                tokio::time::sleep(TICK / 10).await;
            }
            if matches!(error, FetchError::Lies { .. }) {
                forget(path)?;
                wanted.map_or(Ok(()), |wanted| forget(&wanted.bitmap))?;
            }
        }
        outcome
    }

    /// The file that the pieces go into. A fetch that has just ended may have it for a moment yet.
    async fn part(&self, info: &TorrentInfo, path: &Path, say: UnboundedSender<u32>) -> Result<PartFile, FetchError> {
        let since = Instant::now();
        loop {
            match PartFile::open(path, info.len, info.piece_len, say.clone()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && since.elapsed() < HANDOVER => tokio::time::sleep(TICK).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let info_hash = info.info_hash();
                    return Err(FetchError::Busy { info_hash });
                }
                Err(cause) => return Err(FetchError::Io { path: path.into(), cause }),
                Ok(part) => return Ok(part),
            }
        }
    }

    async fn try_pieces(
        &self,
        info: &TorrentInfo,
        part: Arc<PartFile>,
        pieces: UnboundedReceiver<u32>,
        wanted: Option<&Wanted>,
    ) -> Result<Arrived, FetchError> {
        let io_error = |path: &Path| {
            let path = path.to_path_buf();
            move |cause| FetchError::Io { path, cause }
        };
        let torrent = self.engine.add(info, part.clone(), false).await?;
        let watch = |done| {
            self.watcher.step(Step::Checking {
                done: Bytes(done),
                len: info.len,
            });
            !self.watcher.cancelled()
        };
        torrent.checked(watch).await?;
        let verifier = match wanted {
            Some(wanted) => Some(start_verifier(info, &part, wanted, &self.engine.haves(&torrent)).map_err(io_error(&wanted.bitmap))?),
            None => None,
        };
        let mut run = Run {
            tools: self,
            info,
            torrent: &torrent,
            part: &part,
            wanted,
            have: vec![false; info.pieces.len()],
            missing: info.pieces.len(),
            verifier,
            believed_units: 0,
            have_bytes: 0,
            fetched: 0,
        };
        let haves = self.engine.haves(&torrent);
        haves.iter().enumerate().filter(|(_, have)| **have).for_each(|(piece, _)| {
            part.keep(piece as u32);
            run.note(piece as u32);
        });
        let parked = if run.missing > 0 { self.engine.park(&torrent).await } else { None };
        run.until_complete(pieces, parked).await?;
        run.until_believed().await?;
        let sealed = part.clone();
        blocking(move || sealed.seal()).await.map_err(io_error(part.path()))?;
        self.book.set_complete(info.info_hash(), true);
        let fetched = torrent.status().fetched;
        let givers = torrent.peers().into_iter().filter(|peer| peer.pieces > 0);
        self.book.gave(info.info_hash(), givers.map(|peer| peer.addr));
        Ok(Arrived { torrent, fetched })
    }
}

/// Runs blocking work off the runtime's workers.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}

pub fn forget(path: &Path) -> Result<(), FetchError> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(FetchError::Io { path: path.into(), cause }),
        _ => Ok(()),
    }
}

/// The caller's hashes must be the object's own, and as many as its length asks for.
pub fn check_units(digest: Digest, len: Bytes, units: &[[u8; 32]]) -> Result<(), FetchError> {
    let right_count = units.len() as u64 == unit_count(len);
    let found = if right_count { digest_of_units(units, len) } else { Digest::NONE };
    if found != digest {
        return Err(FetchError::Units { digest, found });
    }
    Ok(())
}

/// The manifest's length is the only right one.
pub fn check_len(info: &TorrentInfo, want: Bytes) -> Result<(), FetchError> {
    if info.len != want {
        return Err(FetchError::Length {
            info_hash: info.info_hash(),
            found: info.len,
            want,
        });
    }
    Ok(())
}

/// A verifier that keeps the recorded belief in units whose pieces the engine found right again.
fn start_verifier(info: &TorrentInfo, part: &Arc<PartFile>, wanted: &Wanted, haves: &[bool]) -> io::Result<Asking> {
    let count = wanted.units.len();
    let mut believed = believed::load(&wanted.bitmap, wanted.digest, info.len, count);
    for unit in 0..count {
        if !pieces_of(info, unit).all(|piece| haves.get(piece).is_some_and(|have| *have)) {
            believed.set(unit, false);
        }
    }
    let file = UnitsFile::create(&wanted.bitmap, wanted.digest, info.len)?;
    let verifier = Verifier::start(part.clone(), info.len.0, wanted.units.clone(), believed.clone(), file)?;
    Ok(Asking { verifier, asked: believed })
}

/// The pieces that unit `unit` lies in.
fn pieces_of(info: &TorrentInfo, unit: usize) -> impl Iterator<Item = usize> {
    let piece = u64::from(info.piece_len);
    let start = unit as u64 * UNIT;
    let end = (start + UNIT).min(info.len.0);
    (start / piece) as usize..end.div_ceil(piece) as usize
}

struct Asking {
    verifier: Verifier,
    /// Believed already, or on the way to be.
    asked: Units,
}

struct Run<'a> {
    tools: &'a Tools<'a>,
    info: &'a TorrentInfo,
    torrent: &'a Torrent,
    part: &'a PartFile,
    wanted: Option<&'a Wanted>,
    have: Vec<bool>,
    missing: usize,
    verifier: Option<Asking>,
    believed_units: usize,
    have_bytes: u64,
    fetched: u64,
}

impl Run<'_> {
    /// A piece is there; asks for the belief of each unit that is whole by it.
    fn note(&mut self, piece: u32) {
        match self.have.get_mut(piece as usize) {
            Some(have) if !*have => *have = true,
            _ => return,
        }
        self.missing -= 1;
        let range = self.info.piece_range(piece);
        self.have_bytes += range.end - range.start;
        let Some(asking) = &mut self.verifier else { return };
        for unit in (range.start / UNIT) as usize..range.end.div_ceil(UNIT) as usize {
            if !asking.asked.get(unit) && pieces_of(self.info, unit).all(|piece| self.have[piece]) {
                asking.asked.set(unit, true);
                asking.verifier.ask(unit);
            }
        }
    }

    async fn until_complete(&mut self, mut pieces: UnboundedReceiver<u32>, mut parked: Option<Parked>) -> Result<(), FetchError> {
        self.steer(&mut parked).await;
        let mut progress = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        while self.missing > 0 {
            tokio::select! {
                Some(piece) = pieces.recv() => {
                    self.note(piece);
                    while let Ok(piece) = pieces.try_recv() {
                        self.note(piece);
                    }
                    progress = Instant::now();
                    self.report();
                    self.steer(&mut parked).await;
                }
                verdict = next_verdict(&mut self.verifier) => self.judge(verdict)?,
                _ = tick.tick() => {
                    let status = self.torrent.status();
                    if let State::Failed { why } = &status.state {
                        return Err(self.failure(why));
                    }
                    self.fetched = status.fetched;
                    self.tools.patient(self.info.info_hash(), progress)?;
                    self.report();
                }
            }
        }
        Ok(())
    }

    async fn until_believed(&mut self) -> Result<(), FetchError> {
        if let Some(asking) = &mut self.verifier {
            asking.verifier.close();
        }
        while self.verifier.is_some() {
            match next_verdict(&mut self.verifier).await {
                Verdict::End => self.verifier = None,
                verdict => self.judge(verdict)?,
            }
        }
        self.fetched = self.torrent.status().fetched;
        self.report();
        Ok(())
    }

    fn judge(&mut self, verdict: Verdict) -> Result<(), FetchError> {
        let Some(wanted) = self.wanted else { return Ok(()) };
        match verdict {
            Verdict::Believed(units) => {
                self.believed_units = units;
                Ok(())
            }
            Verdict::End => Ok(()),
            Verdict::Lies { unit, found } => Err(FetchError::Lies {
                digest: wanted.digest,
                unit,
                at: Bytes(unit as u64 * UNIT),
                found: Sha256(found),
                want: Sha256(wanted.units[unit]),
            }),
            Verdict::Failed(cause) => Err(FetchError::Io {
                path: self.part.path().into(),
                cause,
            }),
        }
    }

    fn failure(&self, why: &str) -> FetchError {
        match self.part.take_failure() {
            Some(cause) => FetchError::Io {
                path: self.part.path().into(),
                cause,
            },
            None => self.torrent.stopped(why).into(),
        }
    }

    fn report(&self) {
        self.tools.watcher.step(Step::Fetching {
            have: Bytes(self.have_bytes),
            len: self.info.len,
            believed: Bytes((self.believed_units as u64 * UNIT).min(self.info.len.0)),
            fetched: Bytes(self.fetched),
            peers: self.tools.book.peers(self.info.info_hash()).len(),
        });
    }

    /// In-order pieces make every peer want the same; a random one spreads them.
    async fn steer(&self, parked: &mut Option<Parked>) {
        if let (Some(parked), Some(piece)) = (parked, self.random_missing()) {
            parked.seek(self.info.piece_range(piece).start).await;
        }
    }

    fn random_missing(&self) -> Option<u32> {
        let mut random = [0; 8];
        if self.missing == 0 || getrandom::fill(&mut random).is_err() {
            return None;
        }
        let nth = (u64::from_le_bytes(random) % self.missing as u64) as usize;
        let mut missing = self.have.iter().enumerate().filter(|(_, have)| !**have);
        missing.nth(nth).map(|(piece, _)| piece as u32)
    }
}

async fn next_verdict(asking: &mut Option<Asking>) -> Verdict {
    match asking {
        Some(asking) => asking.verifier.next().await,
        None => std::future::pending().await,
    }
}
