//! Believes what arrives: units are hashed with our own tree, synced, and then recorded.
//!
//! Refuses to know how the bytes came. Invariant: a unit's bit is written after the sync of its bytes, which is after its hash was
//! found right.

use super::believed::{Units, UnitsFile};
use super::storage::{Backing, PartFile};
use crate::format::verity::{UNIT, unit_hash};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Units between two syncs at most: 8 MiB.
const BATCH: usize = (8 << 20) / UNIT as usize;
const INTERVAL: Duration = Duration::from_secs(1);

/// What the verifier says.
#[derive(Debug)]
pub enum Verdict {
    /// So many units are durable and recorded now, in all.
    Believed(usize),
    /// The bytes of this unit are not the object's.
    Lies {
        unit: usize,
        found: [u8; 32],
    },
    Failed(io::Error),
    /// All that was asked for is done.
    End,
}

/// Two threads: one hashes, one syncs and records. They end when [`Verifier::close`] was called and all is done.
pub struct Verifier {
    ask: Option<Sender<usize>>,
    verdicts: UnboundedReceiver<Verdict>,
}

impl Verifier {
    pub fn start(part: Arc<PartFile>, len: u64, hashes: Arc<Vec<[u8; 32]>>, believed: Units, file: UnitsFile) -> io::Result<Verifier> {
        let (ask, asked) = mpsc::channel();
        let (good, checked) = mpsc::channel();
        let (say, verdicts) = unbounded_channel();
        let (reader, told) = (part.clone(), say.clone());
        std::thread::Builder::new().name("bbt-verify".into()).spawn(move || {
            if let Err(verdict) = hash_units(&reader, len, &hashes, &asked, &good, &told) {
                let _ = told.send(verdict);
            }
        })?;
        std::thread::Builder::new().name("bbt-sync".into()).spawn(move || {
            let last = match record_units(&part, believed, &file, &checked, &say) {
                Ok(()) => Verdict::End,
                Err(error) => Verdict::Failed(error),
            };
            let _ = say.send(last);
        })?;
        Ok(Verifier { ask: Some(ask), verdicts })
    }

    /// Queues a unit whose bytes are all there.
    pub fn ask(&self, unit: usize) {
        if let Some(ask) = &self.ask {
            // A verifier that has failed has said so.
            let _ = ask.send(unit);
        }
    }

    /// Nothing more will be asked.
    pub fn close(&mut self) {
        self.ask = None;
    }

    pub async fn next(&mut self) -> Verdict {
        self.verdicts.recv().await.unwrap_or(Verdict::End)
    }
}

fn hash_units(
    part: &PartFile,
    len: u64,
    hashes: &[[u8; 32]],
    asked: &Receiver<usize>,
    good: &Sender<usize>,
    told: &UnboundedSender<Verdict>,
) -> Result<(), Verdict> {
    let mut buf = vec![0; UNIT as usize];
    for unit in asked {
        // A fetch that has failed does not wait for the rest.
        if told.is_closed() {
            break;
        }
        let start = unit as u64 * UNIT;
        let data = &mut buf[..UNIT.min(len - start) as usize];
        part.read(start, data).map_err(Verdict::Failed)?;
        let found = unit_hash(data);
        if found != hashes[unit] {
            return Err(Verdict::Lies { unit, found });
        }
        if good.send(unit).is_err() {
            break;
        }
    }
    Ok(())
}

fn record_units(
    part: &PartFile,
    mut believed: Units,
    file: &UnitsFile,
    checked: &Receiver<usize>,
    say: &UnboundedSender<Verdict>,
) -> io::Result<()> {
    let mut pending = Vec::new();
    let mut since = Instant::now();
    loop {
        let wait = if pending.is_empty() {
            INTERVAL
        } else {
            INTERVAL.saturating_sub(since.elapsed())
        };
        let next = checked.recv_timeout(wait);
        if let Ok(unit) = next {
            if pending.is_empty() {
                since = Instant::now();
            }
            pending.push(unit);
        }
        let end = matches!(next, Err(RecvTimeoutError::Disconnected));
        if pending.len() >= BATCH || !pending.is_empty() && (end || since.elapsed() >= INTERVAL) {
            part.sync()?;
            pending.drain(..).for_each(|unit| believed.set(unit, true));
            file.record(&believed)?;
            let _ = say.send(Verdict::Believed(believed.ones()));
        }
        if end {
            return Ok(());
        }
    }
}
